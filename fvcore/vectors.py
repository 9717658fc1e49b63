"""Station 5: the function vector, what the top heads together add to the residual stream.

Source: section 2.3 of Todd et al. 2023; `compute_function_vector` in the reference's extract_utils.py.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fvcore.formats import FormatError, read_safetensors, safetensors_metadata, write_safetensors
from fvcore.model.model import LanguageModel

VECTOR = "function_vector"


@torch.inference_mode()
def head_term(lm: LanguageModel, layer: int, head: int, activation: Tensor) -> Tensor:
    """What one head writes: `o_proj` of a vector that is zero but for this head's slice.

    activation: (d_head,), of which a layer with narrower heads takes the first      returns: (d_model,) in the model's dtype

    A projection bias is part of every head's term, so the sum over k heads holds it k times; that is how the
    reference defines the vector.
    """
    o_proj: Any = lm.o_proj(layer)
    width = lm.d_heads[layer]
    x = torch.zeros(lm.n_heads * width)
    x[head * width : (head + 1) * width] = activation[:width]
    term: Tensor = o_proj(x.reshape(1, 1, -1).to(next(o_proj.parameters()).device).to(lm.hf.dtype))
    return term.reshape(-1)


@torch.inference_mode()
def function_vector(lm: LanguageModel, mean_activations: Tensor, heads: Iterable[Sequence[int]]) -> Tensor:
    """Sum of the heads' terms at the last slot, in rank order, accumulated in fp32 and cast to the model's dtype.

    mean_activations: (layer, head, slot, d_head)     heads: (layer, head, ...) in rank order     returns: (d_model,)
    """
    return sum_of_terms(lm, mean_activations[:, :, -1], heads).to(lm.hf.dtype)


@torch.inference_mode()
def sum_of_terms(lm: LanguageModel, mean: Tensor, heads: Iterable[Sequence[int]]) -> Tensor:
    """The same in fp32, of means at one slot: (layer, head, d_head) -> (d_model,)."""
    total = torch.zeros(lm.d_model, device=lm.device)
    for layer, head, *_ in heads:
        total += head_term(lm, layer, head, mean[layer, head]).to(total.device)
    return total


def save_vector(path: str | Path, vector: Tensor, **about: object) -> None:
    """Write a vector (d_model,) as safetensors; `about`: what is worth knowing of it, kept as text beside it."""
    write_safetensors(Path(path), {VECTOR: vector}, {name: str(value) for name, value in about.items()})


def load_vector(path: str | Path) -> tuple[Tensor, dict[str, str]]:
    """A vector (d_model,) and what was said about it. Raises FormatError for a file that holds none."""
    found = read_safetensors(Path(path))
    if VECTOR not in found:
        raise FormatError(f"{path}: expected a tensor {VECTOR!r}, found {', '.join(found) or 'none'}")
    return found[VECTOR], safetensors_metadata(Path(path))
