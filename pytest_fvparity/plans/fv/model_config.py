"""Sizes of a model, of the part that reads text."""

from fvcore.model.anatomy import head_widths, text_config
from fvcore.model.model import LanguageModel

__all__ = ["LanguageModel", "head_widths", "text_config"]
