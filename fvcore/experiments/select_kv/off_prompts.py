"""OFF prompts that have nothing to do with any relation: combinations of a few words, a few sentences, or a user's own."""

from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.errors import OnTaskInvalid
from fvcore.experiments.select_kv.tokens import OffSample, ids_of
from fvcore.formats import read_jsonl, read_yaml, validated
from fvcore.profile import Strict
from fvcore.trials.fixed import FileRecord

DRAW = 3
"""Which draw of the seed this is."""


class Prompts(Strict):
    """off_prompts.yaml."""

    template: str
    instructions: list[str]
    objects: list[str]
    styles: list[str]
    legacy5: list[str]

    @property
    def builtin(self) -> list[str]:
        parts = product(self.instructions, self.objects, self.styles)
        return [self.template.format(instruction=one, object=two, style=three) for one, two, three in parts]


class Line(FileRecord):
    """A line of a user's file; what it says beside its text is left alone."""

    text: str


@cache
def shipped() -> Prompts:
    path = Path(__file__).with_name("off_prompts.yaml")
    return validated(Prompts, read_yaml(path), path)


def texts(source: str) -> list[str]:
    """Every prompt of a source, in order, each once."""
    if source in ("builtin", "legacy5"):
        return list(getattr(shipped(), source))
    found = list(dict.fromkeys(line.text for line in validated(list[Line], read_jsonl(Path(source)), source)))
    if not all(found) or not found:
        raise OnTaskInvalid(f"{source}: expected lines of texts, found {'an empty text' if found else 'no line'}")
    return found


def samples(settings: Phase2, tokenizer: Any) -> list[OffSample]:
    """Drawn without replacement; again from the start where repeats are allowed and there are too few."""
    n, off = settings.eval.off_samples, settings.data.off
    pool = texts(off.source)
    if n > len(pool) and not off.allow_repeat:
        raise OnTaskInvalid(
            f"eval.off_samples is {n}, and data.off.source {off.source} has {len(pool)} different prompts; "
            "ask for fewer, or allow repeats with data.off.allow_repeat"
        )
    order = np.random.default_rng(np.random.SeedSequence([settings.seed, DRAW])).permutation(len(pool))
    drawn = [pool[order[index % len(pool)]] for index in range(n)]
    return [OffSample(index, f"off-{index:04}", "", text, ids_of(tokenizer, text)) for index, text in enumerate(drawn)]
