"""The production steps: sampled trials, StepD, heat map, StepE, zero-shot snapshot, Step6, in one folder.

The stations do the computing. Here is what is asked of them, in which order, and the files that people exchange.
"""
