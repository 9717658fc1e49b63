"""The plans' own scripts: one table of them, each run by the command here that does the same."""
