"""`fvcore eval nshot|layers|tokens|portability|all`: one evaluation, or all of them, into one folder."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fvcore.model.spec import ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fvcore.experiments.evaluation.report import Report
    from fvcore.experiments.evaluation.results import Result

console = Console(highlight=False)


class What(StrEnum):
    nshot = "nshot"
    layers = "layers"
    tokens = "tokens"
    portability = "portability"
    all = "all"


def evaluate(
    what: Annotated[What, typer.Argument(help="The evaluation.")],
    model: Annotated[str, typer.Option(help="Shipped model, directory or cached hub id.")],
    dataset: Annotated[
        str, typer.Option(help="A JSON file of {input, output} rows, or a name to look up in --fv-src.")
    ],
    fv_src: Annotated[
        Path | None, typer.Option(help="Checkout of the public reference; its datasets are read where they lie.")
    ] = None,
    vector: Annotated[Path | None, typer.Option(help="The vector: .json (an artifact), .safetensors or .pt.")] = None,
    trials: Annotated[Path | None, typer.Option(help="Fixed trials to compute the vector from instead.")] = None,
    n_top_heads: Annotated[int, typer.Option(min=1, help="Heads in a vector computed from --trials.")] = 10,
    control: Annotated[
        list[str] | None,
        typer.Option(help="A vector to compare with, again and again: random_heads (with --trials) or gaussian."),
    ] = None,
    edit_layer: Annotated[
        int | None, typer.Option(help="Block at whose output the vector is added (default: a third of the depth).")
    ] = None,
    n_shots: Annotated[str, typer.Option(help="Numbers of demonstrations, with commas.")] = "0,1,5,10",
    n_trials: Annotated[int | None, typer.Option(min=1, help="Questions: the first so many of the split.")] = None,
    split: Annotated[str, typer.Option(help="Split that questions come from: test or valid.")] = "test",
    test_split: Annotated[float, typer.Option(help="Share of the rows held out of the demonstrations.")] = 0.3,
    seed: Annotated[int, typer.Option(min=0, help="Of the split and of the draws.")] = 42,
    filtered: Annotated[
        bool,
        typer.Option(
            "--filter/--no-filter", help="Only questions that the model gets right behind the most demonstrations."
        ),
    ] = True,
    nll: Annotated[bool, typer.Option("--nll/--no-nll", help="Score whole answers by likelihood.")] = False,
    generate: Annotated[bool, typer.Option("--generate/--no-generate", help="Score generated answers.")] = False,
    templates: Annotated[Path | None, typer.Option(help="YAML list of templates (default: the shipped ones).")] = None,
    n_tokens: Annotated[int, typer.Option(min=1, help="Tokens shown of a vector.")] = 10,
    alpha: Annotated[float, typer.Option(help="What the vector is multiplied with.")] = 1.0,
    reference_profile: Annotated[
        str, typer.Option(help="src, or todd_upstream: a BOS text where the tokenizer adds none.")
    ] = "src",
    engine: Annotated[str, typer.Option(help="fast, where it holds for the model, or exact.")] = "fast",
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:K (default: the spec's, else cpu).")] = None,
    dtype: Annotated[str | None, typer.Option(help="fp32, fp16 or bf16 (default: the spec's, else fp32).")] = None,
    model_spec: Annotated[
        str | None, typer.Option(help="Registered spec, alias or YAML file (default: found).")
    ] = None,
    quant: Annotated[str | None, typer.Option(help="none, 8bit or 4bit (default: the spec's, else none).")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder (default: results/eval/<dataset>_<model>).")] = None,
) -> None:
    """Measure what a function vector does for a task: evaluation.json, a CSV a table, and plots."""
    from fvcore.experiments.evaluation import plots, report
    from fvcore.experiments.evaluation.bench import Bench
    from fvcore.experiments.evaluation.run import Plan, run
    from fvcore.experiments.evaluation.tasks import load_task
    from fvcore.model import model as models
    from fvcore.trials import model_tag

    shots = _shots(n_shots)
    task = load_task(dataset, fv_src, test_split, seed)
    lm = models.load(model, device, dtype, spec=model_spec, quant=quant)
    layer = lm.n_layers // 3 if edit_layer is None else edit_layer
    bench = Bench(
        lm,
        task,
        seed=seed,
        split=split,
        n_questions=n_trials,
        nll=nll,
        generate=generate,
        alpha=alpha,
        reference_profile=reference_profile,
        engine=engine,
    )
    tables = frozenset(each.value for each in What if each is not What.all) if what is What.all else {what.value}
    plan = Plan(frozenset(tables), shots, layer, test_split, filtered, n_tokens, templates)
    found = run(bench, plan, vector, trials, n_top_heads, control or [])
    folder = out or Path("results", "eval", f"{task.name}_{model_tag(lm.name)}")
    written = [*report.write(found, folder), *plots.draw(found, folder)]
    _show(found)
    console.print(f"wrote {', '.join(path.name for path in written)} to {folder}", soft_wrap=True, markup=False)


def _shots(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise ModelError(f"--n-shots {text!r}: expected whole numbers with commas, such as 0,1,5,10")
    return sorted({int(part) for part in parts})


def _show(found: Report) -> None:
    for name, results in (("baseline", found.baseline), ("nshot", found.nshot), ("layers", found.layers)):
        if results:
            console.print(_table(name, results))
    for port in found.portability:
        console.print(_table(port.template, [port.baseline, *port.with_vectors]))
    for vector, way in dict.fromkeys((row.vector, row.way) for row in found.tokens):
        texts = [repr(row.text) for row in found.tokens if (row.vector, row.way) == (vector, way)]
        console.print(f"{vector}, {way}: {' '.join(texts)}", soft_wrap=True, markup=False)


def _table(name: str, results: Sequence[Result]) -> Table:
    columns = ("shots", "labels", "vector", "layer", "n", "top 1", "95 %", "top 3", "mean rank")
    table = Table(*columns, title=name, title_justify="left", box=None, pad_edge=False)
    for result in results:
        row = result.summary
        table.add_row(
            str(result.n_shots),
            result.labels,
            result.vector or "",
            "" if result.layer is None else str(result.layer),
            str(row["n"]),
            f"{row['top1']:.3f}",
            f"{row['top1_low']:.2f}-{row['top1_high']:.2f}",
            f"{row['top3']:.3f}",
            f"{row['mean_rank']:.1f}",
        )
    return table
