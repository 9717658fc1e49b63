"""The public reference: the only rooms that know it."""
