"""How work grows: the sweep with trials and with heads, a trials file's verification, the six checks, reports and merging.

    python benchmarks/scale.py

writes `docs/scale.json` and, of it, `docs/scale.md` with its picture (`scale_page.py`). Every point has a process of its own,
so that none finds memory that another one freed. Seconds are those that the processor worked, on one thread: what else runs
on the machine does not count.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout, suppress
from ctypes import CDLL
from functools import cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any

import sweep_world
import torch
import typer
from scale_page import DOCS, MB, Curve, Figures, Point, write_page

from fvcore.cli import trials_verify
from fvcore.embedded.random_models import AWKWARD_PAIRS, RIG_TOKENIZERS, random_lm, trials_for
from fvcore.fast.engines import causal_indirect_effects
from fvcore.formats import json_text, write_text
from fvcore.gates import StageResult
from fvcore.model.memory import peak_memory
from fvcore.model.model import load_tokenizer
from fvcore.pipeline import Pipeline, Settings
from fvcore.prompts import sample_trials
from fvcore.provenance import now, processor
from fvcore.trials import fixed as trials
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.merge import merge
from pytest_fvparity.report.render import REPORT, read_all, write_all
from pytest_fvparity.report.report import Report, assemble
from pytest_fvparity.selftest.rig import Rig

BOUND = 64 * MB
N_TRIALS = (10, 30, 100, 300, 1000)
N_HEADS = (24, 64, 256, 1024)
N_SUITES = (1, 10, 30, 100)

Work = Iterator[dict[str, int]]
"""Sets up what its first step does not time; the second step is timed, and tells the bytes of what it wrote, by name."""


def sweep(size: sweep_world.Size, n_trials: int, bound: int | None) -> Work:
    lm = sweep_world.model(size, "cpu", "fp32", Path())
    cases, means = sweep_world.cases_and_means(lm, sweep_world.fixed_trials(n_trials))
    causal_indirect_effects(lm, cases[:1], means, max_memory=bound)
    yield {}
    causal_indirect_effects(lm, cases[:n_trials], means, max_memory=bound)
    yield {}


def by_trials(n: int, folder: Path, bound: int | None) -> Work:
    return sweep(sweep_world.Size.named("tiny-llama"), n, bound)


def by_heads(n: int, folder: Path, bound: int | None) -> Work:
    """As many weights, whatever the number of heads."""
    each = {"n_heads": n // 8, "n_kv_heads": n // 8}
    size = sweep_world.Size(name="8x768", n_layers=8, d_model=768, d_ff=768, vocab_size=2048, **each)
    return sweep(size, 1, bound)


def verification(n: int, folder: Path, bound: int | None) -> Work:
    path, name = folder / "trials.json", sweep_world.TOKENIZER
    meta = trials.Meta(n_trials=n, model_name_for_tokenizer=name, model_prepend_bos=True)
    trials.write(path, sample_trials(load_tokenizer(name), trials.read_pairs(sweep_world.PAIRS), meta))
    yield {}
    trials_verify(path, dataset_json=sweep_world.PAIRS)
    yield {"file": path.stat().st_size}


class Wrong(Pipeline):
    """A candidate whose every logit of every trial is wrong."""

    def injection_output(self, *given: Any) -> Any:
        found = super().injection_output(*given)
        return {leaf: value + 0.5 if leaf.endswith("logits") else value for leaf, value in found.items()}


def judged(n: int) -> Iterator[list[StageResult]]:
    lm = random_lm("llama", RIG_TOKENIZERS["llama"], pairs=AWKWARD_PAIRS)
    rig = Rig.recorded(lm, trials_for(lm, n, 4, 3, pairs=AWKWARD_PAIRS), Settings(edit_layer=1, n_top_heads=3))
    yield []
    yield rig.judge(Wrong(rig.lm, rig.trials, rig.settings))


def checks(n: int, folder: Path, bound: int | None) -> Work:
    return ({} for _ in judged(n))


@cache
def failed() -> Report:
    """The report of a run that fails on ten trials."""
    *_, results = judged(10)
    told = {result.key: result for result in results}
    return assemble(told, {}, {}, dict.fromkeys(CHECK_KEYS, "pytest"), False, ("pairs", "suite_0"))


def made_reports(n_trials: int, n_suites: int = 1) -> list[Report]:
    """That one with the rows of as many trials as are asked for, once a suite."""
    rows = [{**failed().trials[at % 10], "trial_id": at, "trial_idx": at} for at in range(n_trials)]
    return [
        failed().model_copy(update={"trials": rows, "fixed_trials_id": f"suite_{suite}"}) for suite in range(n_suites)
    ]


def written(reports: list[Report], folder: Path) -> dict[str, int]:
    write_all(reports, folder)
    one = folder.joinpath(*reports[0].named)
    sizes = {kind: (one / f"{REPORT}.{kind}").stat().st_size for kind in ("json", "md", "html")}
    return sizes | {"summary": (folder / "summary.html").stat().st_size}


def report_by_trials(n: int, folder: Path, bound: int | None) -> Work:
    reports = made_reports(n)
    yield written(reports, folder)  # templates are compiled once a process
    yield written(reports, folder)


def reports_by_suites(n: int, folder: Path, bound: int | None) -> Work:
    reports = made_reports(1000, n)
    yield written(reports[:1], folder)
    yield written(reports, folder)


def merging(n: int, folder: Path, bound: int | None) -> Work:
    """Two shards of each suite: the keys before the last one, and the last one."""
    for report, (shard, keys) in product(made_reports(1000, n), (("a", CHECK_KEYS[:5]), ("b", CHECK_KEYS[5:]))):
        part = report.model_copy(update={"checks": [check for check in report.checks if check.key in keys]})
        write_text(folder / shard / report.fixed_trials_id / f"{REPORT}.json", part.model_dump_json())
    yield written(made_reports(1), folder)
    found = read_all([folder / "a", folder / "b"])
    yield written(merge([(str(path), report) for path, report in found.items()]), folder / "out")


Make = Callable[[int, Path, "int | None"], Work]

CURVES: tuple[tuple[str, str, Make, tuple[int, ...], int | None], ...] = (
    ("sweep of tiny-llama, 24 heads", "trials", by_trials, N_TRIALS, None),
    ("sweep of tiny-llama, 24 heads", "trials", by_trials, N_TRIALS, BOUND),
    ("sweep of 8 layers x 768, one trial", "heads", by_heads, N_HEADS, None),
    ("sweep of 8 layers x 768, one trial", "heads", by_heads, N_HEADS, BOUND),
    ("`fvcore trials verify`", "trials", verification, N_TRIALS, None),
    ("six checks, every logit wrong", "trials", checks, N_TRIALS[:-1], None),
    ("all files of a failing report", "trials", report_by_trials, N_TRIALS, None),
    ("all files of reports of 1,000 trials", "suites", reports_by_suites, N_SUITES, None),
    ("`fvparity merge`, two shards of 1,000 trials each", "suites", merging, N_SUITES, None),
)


def measured(make: Make, n: int, bound: int | None) -> Point:
    """One point, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        steps = make(n, Path(folder), bound)
        next(steps)
        with suppress(OSError, AttributeError):
            CDLL("libc.so.6").malloc_trim(0)  # what setting up took and freed would hide what the work takes
        gc.collect()
        gc.freeze()  # the collector passes over what was there before, which is no part of the work
        with peak_memory() as peak:
            begun = time.process_time()
            sizes = next(steps)
            seconds = time.process_time() - begun
    return Point(n=n, seconds=seconds, memory=peak.n_bytes, sizes=sizes)


def run() -> Figures:
    torch.set_num_threads(1)
    failed()  # known to all processes that are forked off
    curves = []
    for name, of, make, counts, bound in CURVES:
        points = []
        for n in counts:
            with multiprocessing.get_context("fork").Pool(1) as pool:
                points.append(pool.apply(measured, (make, n, bound)))
            typer.echo(
                f"{name}, {n} {of}: {points[-1].seconds:.3g} s, {points[-1].memory / MB:.0f} MB {points[-1].sizes}"
            )
        curves.append(Curve(name=name, of=of, bound=bound, points=points))
    return Figures(date=now()[:10], processor=str(processor("cpu")), torch=torch.__version__, curves=curves)


def main(out: Annotated[Path, typer.Option(help="Folder of figures, page and picture.")] = DOCS) -> None:
    """Measure, and write the page."""
    figures = run()
    write_text(out / "scale.json", json_text(figures.model_dump(mode="json")))
    write_page(figures, out)


if __name__ == "__main__":
    typer.run(main)
