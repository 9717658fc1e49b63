"""Trials: fixed ones as files that people exchange, sampled ones of a run, and what draws them."""
