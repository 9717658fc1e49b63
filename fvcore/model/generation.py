"""Greedy decoding: at every step the largest logit, up to one of the model's own end tokens.

Models ship with generation settings (sampling, penalties, forced or forbidden tokens, least lengths) that change what is
decoded. Of all of them only the end tokens count here, as they do for the reference; what is set aside is told.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

COUNT = ("bos_token_id", "eos_token_id", "pad_token_id")
NO_SETTINGS = {*COUNT, "transformers_version", "_from_model_config"}


def end_ids(hf: Any) -> list[int]:
    """The tokens that end a text; none where the model does not say."""
    ends = hf.generation_config.eos_token_id
    return [] if ends is None else [int(i) for i in (ends if isinstance(ends, list) else [ends])]


def set_aside(hf: Any) -> dict[str, Any]:
    """The settings that a model ships with and that do not count, by name."""
    given = hf.generation_config.to_diff_dict().items()
    # The cache is on anyway; what a config merely switches off is nothing.
    return {name: v for name, v in given if name not in NO_SETTINGS and v not in (None, name == "use_cache")}


@contextmanager
def greedily(hf: Any) -> Iterator[None]:
    """`hf.generate` decodes greedily in this block, whatever the model ships with, which is there again behind it."""
    from transformers import GenerationConfig

    own = hf.generation_config
    # Not handed to `generate`: what such a config leaves open is filled up from the model's own.
    hf.generation_config = GenerationConfig(**{name: getattr(own, name) for name in COUNT})
    try:
        yield
    finally:
        hf.generation_config = own
