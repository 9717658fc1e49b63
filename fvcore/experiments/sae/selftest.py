"""Discovery on trial: on planted models, whose causes are known, beside what the plan's own methods find in the same data.

Three questions. Are planted causes found, and nothing else? How often is a feature that causes nothing called a cause? How
large must an effect be to be found?
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import sqrt
from pathlib import Path
from statistics import fmean
from typing import Any

from fvcore.embedded.planted import Edge, Planted, build
from fvcore.experiments.sae import bench as benches
from fvcore.experiments.sae.attribution import Sources
from fvcore.experiments.sae.batches import Batch, attributions, nulls, replays
from fvcore.experiments.sae.bench import Bench
from fvcore.experiments.sae.config import Discover
from fvcore.experiments.sae.pathways import Node, Pathway, ReplayRow, TargetRow
from fvcore.experiments.sae.replay import ZERO
from fvcore.experiments.sae.verdicts import judge
from fvcore.experiments.statistics import adjusted
from fvcore.formats import FormatError, read_text, write_text

WORLDS, POWERED, CALIBRATED = 4, 3, 3
"""Planted models for each comparison, for each three sizes of effect, and for features without one."""
EFFECTS = ((0.0, 0.1, 0.5), (0.02, 0.2, 1.0), (0.05, 0.15, 0.3))
MOST_ACTIVE = 10  # of a layer, as the plan lists them
GRADIENT = 0.1  # the plan's threshold
OURS = "replay, two nulls, effect and sign"


@dataclass(frozen=True)
class Survey:
    """A discovery on a planted model, in memory."""

    world: Planted
    settings: Discover
    sources: Sources
    seed: int = 0

    @cached_property
    def bench(self) -> Bench:
        return benches.planted(self.world)

    def rows(self, batches: Iterable[Batch]) -> list[Any]:
        return [row for batch in batches for row in batch.work(self.bench)]

    @cached_property
    def targets(self) -> list[TargetRow]:
        nodes = [Node(*target) for target in self.world.targets]
        return self.rows(attributions(nodes, self.sources, self.settings))

    @cached_property
    def replays(self) -> list[ReplayRow]:
        return self.rows(replays(self.targets, self.settings, self.seed))

    @cached_property
    def pathways(self) -> list[Pathway]:
        nulled = self.rows(nulls(self.targets, self.settings, self.seed))
        return judge(self.targets, self.replays, nulled, self.bench.contexts, self.settings)

    @property
    def validated(self) -> set[Edge]:
        return {_edge(one.source, one.target) for one in self.pathways if one.validated}


def survey(world: Planted, settings: Discover | None = None, sources: Sources | None = None) -> Survey:
    """With the settings as they ship, and all features as sources."""
    return Survey(world, settings or Discover(), sources or dict.fromkeys(range(world.hf.config.num_hidden_layers)))


def _edge(source: str, target: str) -> Edge:
    return Node.of(source), Node.of(target)


def methods(one: Survey) -> dict[str, set[Edge]]:
    """Method -> the edges that it calls causes."""
    every = one.settings.model_copy(update={"min_rel_attr": 0.0, "legacy_min_abs_gradient": GRADIENT})
    steep = survey(one.world, every, one.sources).targets
    limit = one.settings.replay.min_rel_effect
    return {
        "ten most active features of each layer": _most_active(one),
        f"gradient above {GRADIENT:g}": {_edge(c.source, row.target) for row in steep for c in row.candidates},
        "Wilcoxon's test of replays against 0": _wilcoxon(one.replays, one.settings.fdr.q),
        "attribution without replay": {
            _edge(c.source, row.target) for row in one.targets for c in row.candidates if c.attribution_rel >= limit
        },
        OURS: one.validated,
    }


def _most_active(one: Survey) -> set[Edge]:
    """At the last token of the first context, as the plan's prototype lists them."""
    found: set[Edge] = set()
    for target in one.world.targets:
        for layer in range(target[0]):
            end = one.bench.plain(layer, layer)[0].ends[layer]
            active = one.bench.columns(layer).encode(end)
            best = active.topk(MOST_ACTIVE)
            found |= {
                ((layer, int(at)), target) for value, at in zip(best.values, best.indices, strict=True) if value > 0
            }
    return found


def _wilcoxon(rows: Sequence[ReplayRow], q: float) -> set[Edge]:
    from scipy.stats import wilcoxon

    moved = [row for row in rows if any(row.deltas[ZERO])]
    corrected = adjusted([float(wilcoxon(row.deltas[ZERO]).pvalue) for row in moved])
    return {_edge(row.source, row.target) for row, p in zip(moved, corrected, strict=True) if p <= q}


def comparison(surveys: Sequence[Survey]) -> dict[str, dict[str, float]]:
    """Method -> found, false, missed (edges of all worlds), precision, recall. What is open counts neither way."""
    counts: dict[str, list[int]] = {}
    for one in surveys:
        for name, found in methods(one).items():
            true, judged = one.world.true, found - one.world.open
            row = counts.setdefault(name, [0, 0, 0])
            for at, n in enumerate((len(judged & true), len(judged - true), len(true - judged))):
                row[at] += n
    return {
        name: {
            "found": hit,
            "false": wrong,
            "missed": lost,
            "precision": hit / (hit + wrong) if hit + wrong else 0.0,
            "recall": hit / (hit + lost),
        }
        for name, (hit, wrong, lost) in counts.items()
    }


def null_survey(seed: int) -> Survey:
    """Half of the features that cause nothing, all replayed, however little is expected of them; no effect is too small."""
    world = build(seed, effects=(0.5, 0.5, 0.5))
    own = Discover(min_rel_attr=0.0, top_k=10_000)
    own = own.model_copy(update={"replay": own.replay.model_copy(update={"min_rel_effect": 0.0})})
    return survey(world, own, dict.fromkeys((0, 1), world.nulls[::2]))


def calibration(surveys: Sequence[Survey]) -> dict[str, float]:
    """What is called a cause among features that are none: shares of the pathways that were tested, and their bound."""
    q = surveys[0].settings.fdr.q
    pathways = [row for one in surveys for row in one.pathways]
    tested = [row for row in pathways if row.p_value is not None]
    tests = {
        "random directions": [row.p_directions for row in tested],
        "random features": [row.p_features for row in tested],
        "both": [row.p_value for row in tested],
    }
    shares = {f"p <= {q:g}, {name}": fmean(p is not None and p <= q for p in ps) for name, ps in tests.items()}
    told = [_wilcoxon(one.replays, q) for one in surveys]
    return {
        "n": len(tested),
        **shares,
        "validated": fmean(row.validated for row in tested),
        "Wilcoxon's test of replays against 0": sum(map(len, told)) / len(pathways),
        "bound": q + 3 * sqrt(q * (1 - q) / len(tested)),
    }


def power(surveys: Mapping[tuple[float, ...], Sequence[Survey]]) -> list[dict[str, float]]:
    """A row for each planted effect: what A and A2 are measured to do to B, and how often each is validated."""
    rows: list[dict[str, float]] = []
    for effects, of in surveys.items():
        for k, effect in enumerate(effects):
            found = {kind: [_of(one, layer, f"{kind}.{k}", f"B.{k}") for one in of] for kind, layer in SOURCES.items()}
            rows.append(
                {"effect": effect, "n": len(of)}
                | {f"{kind} measured": fmean(_size(one) for one in each) for kind, each in found.items()}
                | {
                    f"{kind} validated": fmean(one is not None and one.validated for one in each)
                    for kind, each in found.items()
                }
            )
    return sorted(rows, key=lambda row: row["effect"])


SOURCES = {"A": 0, "A2": 1}


def _size(one: Pathway | None) -> float:
    return 0.0 if one is None or one.rel_effect is None else one.rel_effect


def _of(one: Survey, layer: int, source: str, target: str) -> Pathway | None:
    """None where it was no candidate."""
    names = one.world.names
    nodes = Node(layer, names[source]).name, Node(2, names[target]).name
    return next((row for row in one.pathways if (row.source, row.target) == nodes), None)


def selftest(seed: int = 0) -> dict[str, Any]:
    """All tables, and whether what must hold holds: in the first world every planted cause is validated and no decoy, and of
    features without effect no larger share is validated than chance allows."""
    started = time.perf_counter()
    apart, overlapping = ([survey(build(seed + n, overcomplete=of)) for n in range(WORLDS)] for of in (False, True))
    first = apart[0]
    null = calibration([null_survey(seed + n) for n in range(CALIBRATED)])
    strong: dict[tuple[float, ...], list[Survey]]
    strong = {effects: [survey(build(seed + n, effects)) for n in range(POWERED)] for effects in EFFECTS}
    decoys = {feature for name, feature in first.world.names.items() if name[0] in "CE"}
    criteria = {
        "every planted cause is validated": first.world.true <= first.validated,
        "no decoy is validated": not any(source[1] in decoys for source, _ in first.validated),
        "features without effect stay within the bound": null["validated"] <= null["bound"],
    }
    return {
        "seed": seed,
        "passed": all(criteria.values()),
        "criteria": criteria,
        "comparison": {"apart": comparison(apart), "overlapping": comparison(overlapping)},
        "null": null,
        "power": power(strong),
        "seconds": round(time.perf_counter() - started, 1),
    }


BEGIN, END = "<!-- generated: fvcore pathways selftest --markdown -->", "<!-- end of what is generated -->"


def markdown(found: dict[str, Any]) -> str:
    """The tables of a self-test, as they stand in a page."""
    null, apart, overlapping = found["null"], found["comparison"]["apart"], found["comparison"]["overlapping"]
    causes = sum(apart[OURS][name] for name in ("found", "missed"))
    lines = [
        f"{WORLDS} planted models with {causes} causes, looked at twice: with features that stand apart from one another, and with "
        "as many random ones again that overlap with them.",
        "",
        "| | apart: found | false | precision | recall | overlapping: found | false | precision | recall |",
        "|---|---|---|---|---|---|---|---|---|",
        *(f"| {name} | {_cells(apart[name])} | {_cells(overlapping[name])} |" for name in apart),
        "",
        f"{null['n']} pathways of features that cause nothing, all of them replayed:",
        "",
        "| called a cause by | share |",
        "|---|---|",
        *(f"| {name} | {share:.3f} |" for name, share in null.items() if name not in {"n", "bound"}),
        f"| *may be, at most: q and three standard deviations* | {null['bound']:.3f} |",
        "",
        f"Power, of {POWERED} models for each effect (the part of B that A writes); measured is what ablation takes of B:",
        "",
        "| planted | A measured | A validated | A2 measured | A2 validated |",
        "|---|---|---|---|---|",
        *(
            f"| {one['effect']:.2f} | {one['A measured']:.2f} | {one['A validated']:.0%} | {one['A2 measured']:.2f} "
            f"| {one['A2 validated']:.0%} |"
            for one in found["power"]
        ),
    ]
    return "\n".join(lines) + "\n"


def _cells(row: dict[str, float]) -> str:
    return f"{row['found']} | {row['false']} | {row['precision']:.2f} | {row['recall']:.2f}"


def put_into(page: Path, found: dict[str, Any]) -> None:
    """Write the tables between the two marks of a page; raises FormatError where it has none."""
    before, begin, rest = (text := read_text(page)).partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise FormatError(f"{page}: expected the lines {BEGIN!r} and {END!r}, found {text.count(BEGIN)} of the first")
    write_text(page, f"{before}{begin}\n\n{markdown(found)}\n{end}{after}")
