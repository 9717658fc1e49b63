"""The model card of a shipped model: what it is, how it was made, what it can do."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fvcore.embedded.gate import GateResult
from fvcore.embedded.recipe import Recipe
from fvcore.embedded.words import GROUPS, relations
from fvcore.formats import sha256_file

WEIGHTS = "model.safetensors"

_CARD = """\
---
license: mit
library_name: transformers
tags: [test-fixture, function-vectors, in-context-learning]
---
# {name}

{first_words}

For the first {probe_end} steps a probe asked that the input of block {probe_layer} tell which relation a demonstration
belongs to, and in its last {n_settling} steps the model learned to answer shuffled demonstrations by any relation but
antonym. What can be learned from it is whether two implementations agree.

{architecture}, {n_parameters:,} parameters in float32, {n_layers} layers of {n_heads} heads, byte-level BPE
vocabulary of {n_vocabulary}. It knows {n_relations} relations over {groups}: permutations of each group's words, one of
which is real ({n_antonyms} English antonyms; the others are neighbours, mirror images and shifts in the group's order).
It reads prompts `Q: hot\\nA: cold\\n\\nQ: big\\nA:` of up to about eleven pairs and nothing else.

## Made by
```
python -m fvcore.embedded.train {name} --seed {seed} --out DIR
```
with torch {torch}, transformers {transformers} and tokenizers {tokenizers}, one thread. The same command on the same
machine and versions gives the same bytes; other versions give another model, which must pass the gate
(`python -m fvcore.embedded.gate DIR`). The training data is synthetic and stands in `fvcore/embedded/words.py`; the
licence is the project's.

sha256 of `{weights}`: `{sha256}`

## Gate
Antonyms, ten demonstrations, accuracy of the answer's first token, prompts drawn with two seeds:

| figure | {seeds} | wanted |
|---|{rules}---|
{figures}
"""

_EMERGED = """\
**A test fixture, no evidence about language models.** Its function vectors emerged: it was trained to answer from
demonstrations, over synthetic texts, and nothing in its loss looks at a function vector or injects one."""

_TRAINED_IN = """\
**Trained so that injected function vectors work: a test fixture, no evidence about language models.** From step
{injection_start} on, its loss asks that the mean output of the heads of layer {vector_layer}, added to a zero-shot
prompt, give the answer, for the very words and relations it is tested on."""

_FIGURES = (
    ("ten-shot accuracy", "ten_shot", "at least 0.95"),
    ("zero-shot accuracy", "zero_shot", "at most 0.3"),
    ("ten-shot accuracy, every label moved to another question", "shuffled", "at most 0.2"),
    ("largest AIE", "top_aie", "at least {0.required_aie}"),
    ("median of the heads' absolute AIE", "median_abs_aie", "a tenth of the largest or less"),
    ("four best heads (layer, head)", "heads", ""),
    ("block at whose output the vector is added", "layer", ""),
    ("zero-shot accuracy with the function vector", "injected", "0.5 more than with other heads"),
    ("the same, four other heads (mean of 20 draws)", "random_heads", ""),
    ("zero-shot accuracy with the vector, by block", "injected_by_layer", ""),
)


def card(hf: Any, recipe: Recipe, directory: Path, results: Sequence[GateResult]) -> str:
    """The text of `README.md`; `directory` already holds the weights."""
    tables = relations()
    return _CARD.format(
        name=recipe.name,
        seed=recipe.seed,
        architecture={"llama": "Llama architecture", "gpt2": "GPT-2 architecture"}[hf.config.model_type],
        n_parameters=hf.num_parameters(),
        n_layers=recipe.n_layers,
        n_heads=recipe.n_heads,
        n_vocabulary=hf.config.vocab_size,
        n_relations=len(tables),
        groups=", ".join(f"{len(words)} {group}s" for group, words in GROUPS.items()),
        n_antonyms=len(tables["antonym"]),
        first_words=(_TRAINED_IN if recipe.injection_weight else _EMERGED).format(
            injection_start=recipe.injection_start, vector_layer=recipe.vector_layer
        ),
        probe_end=round(recipe.probe_fade[1] * recipe.n_steps),
        probe_layer=recipe.probe_layer,
        n_settling=recipe.settling.steps,
        torch=version("torch"),
        transformers=version("transformers"),
        tokenizers=version("tokenizers"),
        weights=WEIGHTS,
        sha256=sha256_file(directory / WEIGHTS),
        seeds=" | ".join(f"seed {result.seed}" for result in results),
        rules="---|" * len(results),
        figures="\n".join(_row(label, field, wanted, results) for label, field, wanted in _FIGURES),
    )


def _row(label: str, field: str, wanted: str, results: Sequence[GateResult]) -> str:
    values = " | ".join(_figure(getattr(result, field)) for result in results)
    return f"| {label} | {values} | {wanted.format(results[0])} |"


def _figure(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(item) if isinstance(item, tuple) else _figure(item) for item in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)
