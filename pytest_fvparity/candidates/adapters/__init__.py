"""Candidates to start from: the method on plain torch hooks, on nnsight and on TransformerLens.

`pytest -m parity --fv-candidate=pytest_fvparity.candidates.adapters.torch_hooks:make` puts one under parity. They share `stations`,
which is the method; each adds how its library reads heads and edits a running model. None uses fvcore's hooks or
numeric stations, so that their agreement says something.
"""
