from pytest_fvparity.cli import main

main()
