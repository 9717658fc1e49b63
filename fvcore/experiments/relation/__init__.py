"""The relation experiment: every q_id of a relation file through the production steps, each in a folder of its own.

One q_id is the unit: it is resumed, judged and handed to another process by itself (`unit.Unit`). `run.run` walks over
them with whoever computes (`fvcore.experiments.workers`).
"""
