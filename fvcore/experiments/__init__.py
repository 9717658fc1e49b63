"""Experiments on top of the stations: each has its rooms in a folder of its own, and none imports another.

A new one declares a `config.Config`, computes in stages (`record.Record`) or in units (`workers.Local`, `RayWorkers`)
inside a `folder.locked` folder, and offers its commands by `config.experiment`. `steps` are the production steps, which
the antonym and the relation run both stand on.
"""
