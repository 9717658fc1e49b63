"""The six checks of a candidate against a reference."""
