"""The table of false alarms: the same method, run in ways that are all legal, against its golden.

    python -m pytest_fvparity.selftest.alarms docs/alarms.md

Every run must be green at default tolerances. For the rig's families the golden is what engine `exact` gives, and the
floors of `tolerances.yaml` alone are in force; the shipped models are judged against their committed goldens, as a user
would judge them.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from fvcore import Settings, artifacts, read_trials, shipped
from fvcore.artifacts import Artifact
from fvcore.compare import Tolerance
from fvcore.embedded.random_models import AWKWARD_PAIRS, trials_for
from fvcore.formats import json_text, read_json, write_text
from fvcore.gates import Status, Suite, run_suite
from fvcore.model import model as models
from fvcore.model.model import LanguageModel
from pytest_fvparity.golden.golden import Golden
from pytest_fvparity.golden.manifest import MANIFEST
from pytest_fvparity.parity.checks import STAGES, ParityRun
from pytest_fvparity.parity.implementation import CHECK_KEYS, INPUTS
from pytest_fvparity.parity.noise import (
    OTHER_INSTRUCTIONS,
    has_other_instructions,
    is_number,
    measured,
    other_attention,
)
from pytest_fvparity.report.render import environment
from pytest_fvparity.selftest.mean_heads import batched, padded_logits
from pytest_fvparity.selftest.rig import FAMILIES, TRIALS, Recorded, Rig, changed, in_both, rig_of

SEEDS = tuple(range(10))
HALF_SEEDS = SEEDS[:2]  # half precision is slow on a CPU, and two show what there is to see


def seeded(lm: LanguageModel, seed: int) -> Rig:
    fixed = trials_for(lm, **{**TRIALS, "seed": seed, "pairs": AWKWARD_PAIRS})
    rig = Rig.recorded(lm, fixed, Settings(edit_layer=1, n_top_heads=3, engine="exact"))
    heads = in_both(rig.candidate(), *(rig.artifacts[key] for key in INPUTS["top_heads"]))
    return replace(rig, golden=Recorded({**rig.artifacts, "top_heads": heads}))


def with_noise(rig: Rig) -> Rig:
    """The same rig with what a recording would have measured, engine `exact` in the reference's place."""
    seen: dict[str, dict[str, Artifact]] = {}
    for variation in (EAGER, TWO_THREADS):
        given = dict(rig.artifacts)
        found = seen[variation.name] = dict(given)
        with varied(rig.lm, variation):
            # The numeric keys again, with the recorded heads, as the reference's driver runs a variation.
            for key in CHECK_KEYS[2:]:
                found[key] = getattr(rig.candidate(top_heads=in_both), key)(*(given[name] for name in INPUTS[key]))
                if key != "top_heads":
                    given[key] = found[key]
    return replace(rig, noise=measured(rig.artifacts, seen))


def shipped_rigs() -> Iterator[Rig]:
    for manifest in sorted((shipped.root() / "golden").rglob(MANIFEST)):
        golden = Golden.open(manifest.parent)
        identity, conditions = golden.profile.identity, golden.profile.conditions
        chosen = {name: getattr(identity, name) for name in ("edit_layer", "n_top_heads", "token_class_idx", "alpha")}
        path = shipped.root() / shipped.FIXED_TRIALS / f"{identity.fixed_trials_id}.json"
        if not path.is_file():  # sampled trials of a relation run, which the transfer suite judges
            continue
        fixed = read_trials(path)
        lm = models.load(conditions.model, dtype=identity.dtype, attn=conditions.attn_implementation)
        settings = Settings(**chosen, reference_profile=identity.reference_profile, engine="exact")
        yield Rig(lm, fixed, settings, golden, golden.noise)


@dataclass(frozen=True)
class Variation:
    """A legal way to run the method that need not give the same last bits."""

    name: str
    attention: bool = False  # the other attention implementation, for models that have one
    threads: int = 1
    engine: str = "exact"
    stations: Mapping[str, Any] = field(default_factory=dict)


BATCHED = {"mean_activations": batched(padded_logits)}
TWO_THREADS = Variation("threads 2 for 1", threads=2)
EAGER = Variation("eager for sdpa attention", attention=True)
VARIATIONS = (
    Variation("run a second time"),
    TWO_THREADS,
    EAGER,
    Variation("clean prompts in one padded batch", stations=BATCHED),
    Variation("engine fast for exact", engine="fast"),
    Variation("all of these at once", attention=True, threads=2, engine="fast", stations=BATCHED),
)


@contextmanager
def varied(lm: LanguageModel, variation: Variation) -> Iterator[None]:
    """The model under a variation; what was changed is put back."""
    threads, attention = torch.get_num_threads(), lm.attn_implementation
    torch.set_num_threads(variation.threads)
    if variation.attention:
        lm.hf.set_attn_implementation(other_attention(lm)[0])
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if variation.attention:
            lm.hf.set_attn_implementation(attention)


@dataclass(frozen=True)
class Seen:
    """One run: the first key that was not green, if any, and the largest difference relative to its tolerance."""

    alarm: tuple[str, ...]
    ratios: Mapping[str, float]  # by key and leaf, the largest share of its bound

    @property
    def where(self) -> str:
        return max(self.ratios, key=lambda leaf: self.ratios[leaf])

    @property
    def ratio(self) -> float:
        return self.ratios[self.where]


def judge(rig: Rig, variation: Variation) -> Seen:
    with varied(rig.lm, variation):
        settings = replace(rig.settings, engine=variation.engine)
        subject = rig.run(rig.candidate(settings=settings, top_heads=in_both, **variation.stations))
        results = list(run_suite(Suite("parity", STAGES, lambda: subject)))
    return Seen(tuple(r.key for r in results if r.status is not Status.PASS)[:1], _ratios(subject))


def _ratios(subject: ParityRun) -> dict[str, float]:
    ratios = {"": 0.0}
    for key, actual in subject.memory.actual.items():
        expected, tolerance_of = subject.expected(key), subject.tolerances.of(key)
        for leaf, value in expected.items():
            if is_number(value) and leaf in actual:
                name = f"{key} {leaf.rpartition('/')[2]}"
                ratios[name] = max(ratios.get(name, 0.0), _ratio(value, actual[leaf], tolerance_of(leaf)))
    return ratios


def _ratio(expected: Any, actual: Any, tolerance: Tolerance) -> float:
    want, have = (torch.as_tensor(value).detach().double().cpu() for value in (expected, actual))
    off = (have - want).abs()
    return float((off / tolerance.allowed(want))[off > 0].max()) if bool((off > 0).any()) else 0.0


@dataclass(frozen=True)
class Row:
    """All runs of one variation on rigs of one kind."""

    rigs: str
    variation: str
    seen: tuple[Seen, ...]

    @property
    def alarms(self) -> list[str]:
        """The key of every alarm."""
        return [key for run in self.seen for key in run.alarm]


def rows(
    families: Sequence[str] = FAMILIES,
    seeds: Sequence[int] = SEEDS,
    variations: Sequence[Variation] = VARIATIONS,
    with_shipped: bool = True,
) -> Iterator[Row]:
    """The table, row by row."""
    name = f"{len(families)} families x {len(seeds)} trial seeds, floors alone"
    yield from rows_of(name, (seeded(rig_of(family).lm, seed) for family in families for seed in seeds), variations)
    if with_shipped:
        yield from rows_of(SHIPPED, shipped_rigs(), variations)


def lesser_rows(rigs: Callable[[], Iterable[Rig]], name: str) -> Iterator[Row]:
    """The same runs with a lesser processor's kernels, in a process of its own, against the goldens of this one."""
    if not has_other_instructions():
        return
    with tempfile.TemporaryDirectory(prefix="fvparity-alarms-") as scratch:
        folder = Path(scratch)
        for number, rig in enumerate(rigs()):
            for key, artifact in rig.artifacts.items():
                artifacts.save(artifact, folder / f"{number}-{key}")
        words = [sys.executable, "-m", __spec__.name, "--lesser", name, scratch]
        subprocess.run(words, env=os.environ | OTHER_INSTRUCTIONS, check=True)
        seen = [Seen(tuple(alarm), ratios) for alarm, ratios in read_json(folder / SEEN)]
    yield Row(name, "a lesser processor's kernels", tuple(seen))


def judge_lesser(name: str, folder: Path) -> None:
    """In that process: write what is seen of every rig against its golden in `folder`."""
    seen = []
    for number, rig in enumerate(RIGS[name]()):
        golden = Recorded({key: artifacts.load(folder / f"{number}-{key}") for key in CHECK_KEYS})
        found = judge(replace(rig, golden=golden), VARIATIONS[0])
        seen.append([list(found.alarm), dict(found.ratios)])
    write_text(folder / SEEN, json_text(seen))


def seeded_rigs() -> Iterator[Rig]:
    return (seeded(rig_of(family).lm, seed) for family in FAMILIES for seed in SEEDS)


SEEN = "seen.json"
RANDOM, SHIPPED = f"{len(FAMILIES)} families x {len(SEEDS)} trial seeds, floors alone", "shipped models, their goldens"


def half_rows() -> Iterator[Row]:
    """bf16, where the kernels' difference is large: with the floors alone, and with the noise of each golden. Of the families
    in which the reference has two attention implementations to differ in."""
    both = [rig_of(family).lm for family in FAMILIES if other_attention(rig_of(family).lm)]
    halves = [changed(lm, lambda hf: hf.to(torch.bfloat16)) for lm in both]
    rigs = [seeded(lm, seed) for lm in halves for seed in HALF_SEEDS]
    yield from rows_of("bf16, floors alone", rigs, [EAGER])
    yield from rows_of("bf16, noise of the golden", map(with_noise, rigs), [EAGER])


def rows_of(name: str, rigs: Iterable[Rig], variations: Sequence[Variation]) -> list[Row]:
    seen: dict[str, list[Seen]] = {variation.name: [] for variation in variations}
    for rig in rigs:
        for variation in variations:
            if not variation.attention or other_attention(rig.lm):
                seen[variation.name].append(judge(rig, variation))
    return [Row(name, variation, tuple(runs)) for variation, runs in seen.items() if runs]


def shares(rows: Sequence[Row]) -> dict[str, tuple[float, Row]]:
    """Key and leaf -> the largest share of its bound that a legal variation takes, and whose."""
    found: dict[str, tuple[float, Row]] = {}
    for row in rows:
        for leaf, share in (pair for seen in row.seen for pair in seen.ratios.items()):
            if leaf and share > found.get(leaf, (-1.0, row))[0]:
                found[leaf] = share, row
    return found


def page(strict: Sequence[Row], half: Sequence[Row]) -> str:
    return environment().get_template("alarms.md.j2").render(strict=strict, half=half, shares=shares(strict))


RIGS: dict[str, Callable[[], Iterable[Rig]]] = {RANDOM: seeded_rigs, SHIPPED: shipped_rigs}


def main(path: Path) -> int:
    strict = [*rows(), *(row for name, rigs in RIGS.items() for row in lesser_rows(rigs, name))]
    write_text(path, page(strict, list(half_rows())))
    return 1 if any(row.alarms for row in strict) else 0


if __name__ == "__main__":
    if sys.argv[1] == "--lesser":
        judge_lesser(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main(Path(sys.argv[1])))
