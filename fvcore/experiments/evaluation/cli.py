"""`fvcore eval nshot|layers|tokens|portability|all`: one evaluation, or all of them, into one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from fvcore import escapes, exits
from fvcore.experiments.evaluation.config import EvaluationConfig

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fvcore.experiments.evaluation.report import Evaluation, Result

console = Console(highlight=False)


def evaluate(config: EvaluationConfig) -> None:
    """Measure what a function vector does for a task: evaluation.json, a CSV a table, pictures, and a page."""
    from fvcore.experiments.evaluation import drawing, report
    from fvcore.experiments.evaluation.run import run
    from fvcore.trials.fixed import model_tag

    lm = config.load(config.seed)
    found = run(config, lm)
    folder = config.out or Path("results", "eval", f"{found.task.name}_{model_tag(lm.name)}")
    written = [*report.write(found, folder), *drawing.draw(found, folder)]
    _show(found)
    exits.tell(f"wrote {', '.join(path.name for path in written)} to {folder}")


def _show(found: Evaluation) -> None:
    for name, results in (("baseline", found.baseline), ("nshot", found.nshot), ("layers", found.layers)):
        if results:
            console.print(_table(name, results))
    for port in found.portability:
        console.print(_table(port.template, [port.baseline, *port.with_vectors]))
    for vector, way in dict.fromkeys((row.vector, row.way) for row in found.tokens):
        texts = [repr(row.text) for row in found.tokens if (row.vector, row.way) == (vector, way)]
        exits.tell(f"{vector}, {way}: {' '.join(texts)}")


def _table(name: str, results: Sequence[Result]) -> Table:
    columns = ("shots", "labels", "vector", "layer", "n", "top 1", "95 %", "top 3", "mean rank")
    table = Table(*columns, title=escapes.markup(name), title_justify="left", box=None, pad_edge=False)
    for result in results:
        row = result.summary
        layer = "" if result.layer is None else str(result.layer)
        share = f"{row['top1']:.3f}", f"{row['top1_low']:.2f}-{row['top1_high']:.2f}", f"{row['top3']:.3f}"
        asked = map(escapes.markup, (result.n_shots, result.labels, result.vector or "", layer, row["n"]))
        table.add_row(*asked, *share, f"{row['mean_rank']:.1f}")
    return table
