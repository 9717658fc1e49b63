"""Mean activations, indirect effects, top heads, the vector."""

from fvcore.activations import mean_head_activations
from fvcore.effects import average_indirect_effect, causal_indirect_effect
from fvcore.heads import top_heads
from fvcore.pipeline import run
from fvcore.vectors import function_vector

__all__ = [
    "average_indirect_effect",
    "causal_indirect_effect",
    "function_vector",
    "mean_head_activations",
    "run",
    "top_heads",
]
