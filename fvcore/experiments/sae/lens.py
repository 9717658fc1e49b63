"""What tokens a feature's direction stands for: the model's own last norm and output head read it, and no block does.

A ranking, and no test: scores have no null.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from math import sqrt
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fvcore.experiments.sae.association import Word
from fvcore.experiments.sae.schemas import Feature, Row
from fvcore.model.hooks import replace_outputs

if TYPE_CHECKING:
    from fvcore.experiments.progress import Watched
    from fvcore.experiments.sae.config import PathwaysConfig
    from fvcore.model.model import LanguageModel

READING = "Logit lens"
ROWS = 64
LONG = 1e4
"""Times the length of a direction, so that what a norm adds to the square of a length counts for nothing."""


class Ranked(Word):
    score: float


class Lens(Row):
    """The tokens that a feature's direction writes most, and those that it writes least."""

    top: list[Ranked]
    bottom: list[Ranked]


def lens(settings: PathwaysConfig, chosen: Sequence[Feature], top_k: int, watched: Watched) -> dict[str, Lens]:
    """Feature -> its tokens."""
    from fvcore.experiments.sae.bench import Bench, load_model
    from fvcore.experiments.sae.store import Store

    lm = load_model(settings)
    looked = Bench(lm, Store(settings.sae, lm.d_model, lm.device), [])
    found: dict[str, Lens] = {}
    with watched.running(READING, len(chosen)) as advance:
        for layer, of in groupby(sorted(chosen, key=lambda one: one.layer), key=lambda one: one.layer):
            features = list(of)
            directions = looked.columns(layer, [one.feature_id for one in features]).directions
            rows = ranked(lm, directions, top_k)
            found |= {one.feature: row for one, row in zip(features, rows, strict=True)}
            advance(layer, len(features))
    return found


def ranked(lm: LanguageModel, directions: Tensor, top_k: int) -> Iterator[Lens]:
    """(feature, d_model) -> the tokens of each; those that the tokenizer does not know are left aside."""
    for start in range(0, len(directions), ROWS):
        for scores in read(lm, directions[start : start + ROWS])[:, : len(lm.tokenizer)]:
            order = scores.sort(descending=True, stable=True).indices.tolist()
            yield Lens(top=_words(lm, scores, order[:top_k]), bottom=_words(lm, scores, order[: -top_k - 1 : -1]))


def _words(lm: LanguageModel, scores: Tensor, ids: Iterable[int]) -> list[Ranked]:
    return [Ranked.of(lm.tokenizer, one, score=float(f"{float(scores[one]):.6g}")) for one in ids]


def read(lm: LanguageModel, directions: Tensor) -> Tensor:
    """Unit directions (row, d_model) -> scores (row, vocab) of mean 0: the product of the output head with the last norm's
    weight times the direction."""
    rows = torch.cat([torch.zeros_like(directions[:1]), LONG * directions])[:, None]
    ids = lm.ids([0]).expand(len(rows), -1)
    last = lm.n_layers - 1
    with torch.no_grad(), replace_outputs(lm, [last], "the logit lens", lambda layer, hidden: rows.to(hidden)):
        logits = lm.hf(input_ids=ids, use_cache=False).logits[:, 0].float().cpu()
    scores: Tensor = (logits[1:] - logits[0]) / sqrt(lm.d_model)
    return scores - scores.mean(1, keepdim=True)
