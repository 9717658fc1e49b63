"""The vector added to what leaves a block."""

from fvcore.injection import inject, inject_generate, inject_logits, inject_nll
from fvcore.model.hooks import add_to_residual

__all__ = ["add_to_residual", "inject", "inject_generate", "inject_logits", "inject_nll"]
