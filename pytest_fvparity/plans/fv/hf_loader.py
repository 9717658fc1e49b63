"""A model loaded, and what was found while loading: classes and paths of its output projections among it."""

from fvcore.model.diagnostics import diagnostics
from fvcore.model.model import load, load_tokenizer

__all__ = ["diagnostics", "load", "load_tokenizer"]
