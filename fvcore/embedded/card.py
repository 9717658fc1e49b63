"""The model card of a shipped model: what it is, how it was made, what it can do. Its words stand in `card.md.j2`."""

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fvcore.embedded.gate import GateResult
from fvcore.embedded.recipe import Recipe
from fvcore.embedded.words import GROUPS, relations
from fvcore.formats import sha256_file

WEIGHTS = "model.safetensors"


def card(hf: Any, recipe: Recipe, directory: Path, results: Sequence[GateResult]) -> str:
    """The text of `README.md`; `directory` already holds the weights."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    words = Environment(loader=PackageLoader("fvcore.embedded", "."), undefined=StrictUndefined, trim_blocks=True)
    words.filters["figure"] = _figure
    return words.get_template("card.md.j2").render(
        recipe=recipe,
        architecture={"llama": "Llama architecture", "gpt2": "GPT-2 architecture"}[hf.config.model_type],
        n_parameters=hf.num_parameters(),
        n_vocabulary=hf.config.vocab_size,
        relations=relations(),
        groups=", ".join(f"{len(words)} {group}s" for group, words in GROUPS.items()),
        probe_end=round(recipe.probe_fade[1] * recipe.n_steps),
        version=version,
        weights=WEIGHTS,
        sha256=sha256_file(directory / WEIGHTS),
        results=results,
    )


def _figure(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(item) if isinstance(item, tuple) else _figure(item) for item in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
