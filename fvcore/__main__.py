from fvcore.cli import main

main()
