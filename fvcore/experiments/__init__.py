"""Experiments on top of the stations: each has its rooms in a folder of its own and its commands beside them."""
