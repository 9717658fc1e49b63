"""A spec's paths walked in a model."""

from fvcore.model.anatomy import resolve_attn, resolve_blocks, resolve_out_proj

__all__ = ["resolve_attn", "resolve_blocks", "resolve_out_proj"]
