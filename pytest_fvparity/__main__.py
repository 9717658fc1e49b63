"""`python -m pytest_fvparity` is `fvparity`."""

from pytest_fvparity.cli import main

main()
