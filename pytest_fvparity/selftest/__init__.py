"""The harness on trial: every known fault planted, every legal variation tried, and the table of what was seen."""
