"""pytest_fvparity: parity of function-vector implementations, as a pytest plugin. `checks` is the page to read first."""
