"""`fvcore eval nshot|layers|tokens|portability|all`: one evaluation, or all of them, into one folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fvcore import exits, names, terminal
from fvcore.experiments.evaluation.config import EvaluationConfig
from fvcore.formats import json_text

if TYPE_CHECKING:
    from fvcore.experiments.evaluation.report import Evaluation, Result


def evaluate(config: EvaluationConfig) -> None:
    """Measure what a function vector does for a task: evaluation.json, a CSV a table, pictures, and a page."""
    from fvcore.experiments.evaluation import drawing, report
    from fvcore.experiments.evaluation.run import run
    from fvcore.trials.fixed import model_tag

    lm = config.load(config.seed)
    found = run(config, lm)
    of_model = model_tag(lm.name), names.word_of_directory(config.model) if "/" in config.model else ""
    folder = config.out or Path("reports", "eval", "_".join(filter(None, (found.task.name, *of_model))))
    written = [*report.write(found, folder), *drawing.draw(found, folder)]
    if config.as_json:
        typer.echo(json_text(found.model_dump(mode="json")))
        return
    _show(found)
    exits.tell(drawing.headline(found))
    exits.note(f"wrote {', '.join(path.name for path in written)} to {folder}")


def _show(found: Evaluation) -> None:
    for name, results in (("baseline", found.baseline), ("nshot", found.nshot), ("layers", found.layers)):
        terminal.show([_row(result) for result in results], title=name)
    for port in found.portability:
        terminal.show([_row(result) for result in (port.baseline, *port.with_vectors)], title=port.template)
    for vector, way in dict.fromkeys((row.vector, row.way) for row in found.tokens):
        texts = [repr(row.text) for row in found.tokens if (row.vector, row.way) == (vector, way)]
        exits.tell(f"{vector}, {way}: {' '.join(texts)}")


def _row(result: Result) -> dict[str, object]:
    row = result.summary
    return {
        "shots": result.n_shots,
        "labels": result.labels,
        "vector": result.vector or "",
        "layer": "" if result.layer is None else result.layer,
        "n": row["n"],
        "top 1": f"{row['top1']:.3f}",
        "95 %": f"{row['top1_low']:.2f}-{row['top1_high']:.2f}",
        "top 3": f"{row['top3']:.3f}",
        "mean rank": f"{row['mean_rank']:.1f}",
    }
