"""`fvcore relation ...`: a run over the q_ids of a relation file, its steps one by one, its state and its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperCommand

from fvcore.experiments.antonym.cli import (
    Alpha,
    EditLayer,
    Engine,
    MaxMemory,
    NEval,
    ScoreKey,
    Seed,
    Some,
    Step6Key,
    TopK,
    TrailingSpace,
    WithReplacement,
    edit_layer_of,
    numbers,
    settings_from,
)
from fvcore.formats import FormatError
from fvcore.model.spec import ModelError

if TYPE_CHECKING:
    from fvcore.experiments.relation.run import Summary
    from fvcore.experiments.relation.unit import Unit
    from fvcore.experiments.steps.layout import Folder
    from fvcore.model.model import LanguageModel

app = typer.Typer(no_args_is_help=True, help="A relation file, q_id by q_id: run, single steps, status, report.")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Csv = Annotated[Path, typer.Option("--relation-csv", help="Relation file: q_id and two words a row.")]
Out = Annotated[
    Path | None, typer.Option(help="The run's folder, in which each q_id has its own (default: by --layout).")
]
Layout = Annotated[
    str, typer.Option(help="own: reports/relation/<REL>/<model>/; plan: results_fv/relation_qwise/<REL>/.")
]
Some_q = Annotated[str | None, typer.Option("--q", help="Such as Q3,Q5 (default: all).")]
These_q = Annotated[str, typer.Option("--q", help="Such as Q3, or Q3,Q5.")]
Model = Annotated[str, typer.Option("--model", envvar="FV_MODEL", help="Shipped model, directory or cached hub id.")]
Spec = Annotated[
    str | None, typer.Option("--model-spec", envvar="FV_MODEL_SPEC", help="Registered name, alias or YAML file.")
]
Device = Annotated[str | None, typer.Option(envvar="FV_DEVICE", help="cpu (default), cuda, cuda:N or auto.")]
Dtype = Annotated[str | None, typer.Option(envvar="FV_DTYPE", help="fp32 (default), fp16 or bf16.")]
Quant = Annotated[
    str | None,
    typer.Option(envvar="FV_QUANT", help="none (default), 8bit or 4bit; auto is none: nothing is quantised unasked."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads (default: 1 for a small model, else all cores).")]
NTrials = Annotated[int, typer.Option(min=1, help="Trials of each q_id.")]
NDemos = Annotated[int, typer.Option(min=1, help="Demonstrations in a trial.")]
NRandom = Annotated[int, typer.Option(min=1, help="Vectors of random heads beside each vector.")]
Confidence = Annotated[float, typer.Option(help="Of the intervals, between 0 and 1.")]
SHIPPED = Path("datasets", "relation", "relationA_ex.csv")


class _RunCommand(TyperCommand):
    """`--ray` may stand alone; the option parser knows no such options, so it is given its value here."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words: list[str] = []
        for word, following in zip(args, [*args[1:], "--"], strict=True):
            words += [word, "local"] if word == "--ray" and following.startswith("-") else [word]
        return super().parse_args(ctx, words)


@app.command("run", cls=_RunCommand)
def run_all(
    model: Model,
    relation_csv: Csv = SHIPPED,
    q: Some_q = None,
    out: Out = None,
    layout: Layout = "own",
    model_spec: Spec = None,
    device: Device = None,
    dtype: Dtype = None,
    quant: Quant = None,
    threads: Threads = None,
    engine: Engine = "fast",
    seed: Seed = 0,
    n_trials: NTrials = 25,
    n_demos: NDemos = 9,
    score_key: ScoreKey = "mean_delta_p",
    topk: TopK = 20,
    alpha: Alpha = 1.0,
    zeroshot_trailing_space: TrailingSpace = False,
    n_eval: NEval = 50,
    with_replacement: WithReplacement = False,
    step6_score_key: Step6Key = "mean_delta_logprob",
    n_random: NRandom = 5,
    confidence: Confidence = 0.95,
    max_memory: MaxMemory = None,
    pictures: Annotated[bool, typer.Option("--pictures/--no-pictures", help="Heat maps and report.")] = True,
    stop_on_error: Annotated[bool, typer.Option("--stop-on-error", help="End at the first q_id that fails.")] = False,
    ray: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS]", help="On Ray actors: of this machine, or of the Ray at an address."),
    ] = None,
    ray_cpus: Annotated[int, typer.Option(min=1, help="CPUs, and threads, of each actor.")] = 1,
) -> None:
    """Every q_id through every step; what is completed is not run again. Exit status 1 if a q_id failed."""
    from fvcore.experiments.relation import data
    from fvcore.experiments.relation.progress import Bar
    from fvcore.experiments.relation.run import Local, run, units_of
    from fvcore.experiments.relation.settings import RelationSettings

    chosen = {
        "seed": seed,
        "engine": engine,
        "n_trials": n_trials,
        "n_demos": n_demos,
        "score_key": score_key,
        "topk": topk,
        "alpha": alpha,
        "zeroshot_trailing_space": zeroshot_trailing_space,
        "n_eval": n_eval,
        "with_replacement": with_replacement,
        "step6_score_key": step6_score_key,
        "n_random": n_random,
        "confidence": confidence,
        "max_memory": max_memory,
        "pictures": pictures,
    }
    settings = settings_from(RelationSettings, chosen)
    relation = data.read(relation_csv)
    root, q_ids = root_of(out, layout, relation_csv, model), _q_ids(q)
    units = units_of(relation, root, settings, q_ids)
    if ray is not None:
        from fvcore.experiments.relation.ray_workers import ModelChoice, ray_workers

        if threads is not None:
            raise ModelError("--threads: with --ray an actor has as many threads as CPUs; give --ray-cpus")
        choice = ModelChoice(model, model_spec, device, dtype, None if quant == "auto" else quant, seed)
        with _failing(), ray_workers(ray, choice, ray_cpus) as workers, Bar(console, units, 1, 1) as bar:
            summary = run(relation, root, settings, workers, q_ids, stop_on_error, bar.ended)
        return tell_end(summary, pictures)
    lm = _load(model, model_spec, device, dtype, quant, threads, seed)
    with _failing(), Bar(console, units, lm.n_layers, lm.n_heads) as bar:
        summary = run(relation, root, settings, Local(lm, bar.of), q_ids, stop_on_error, bar.ended)
    return tell_end(summary, pictures)


def tell_end(summary: Summary, pictures: bool) -> None:
    """What became of all, and exit status 1 if a q_id failed."""
    from fvcore.experiments.relation import files

    counts = ", ".join(f"{len(summary.q_ids(state))} {state}" for state in ("completed", "skipped", "failed"))
    stopped = "; stopped at the first failure" if summary.stopped else ""
    console.print(f"{counts}{stopped}, in {summary.root}", soft_wrap=True, markup=False)
    if pictures:
        console.print(f"report: {summary.root / files.REPORT}", soft_wrap=True, markup=False)
    if summary.q_ids("failed"):
        errors.print(f"fvcore relation: see {summary.root / files.FAILURES}", style="red", soft_wrap=True, markup=False)
        raise typer.Exit(1)


@app.command("stepd")
def run_stepd(
    model: Model,
    q: These_q,
    relation_csv: Csv = SHIPPED,
    out: Out = None,
    layout: Layout = "own",
    model_spec: Spec = None,
    device: Device = None,
    dtype: Dtype = None,
    quant: Quant = None,
    threads: Threads = None,
    engine: Engine = "fast",
    seed: Seed = 0,
    n_trials: NTrials = 25,
    n_demos: NDemos = 9,
    layers: Some = None,
    heads: Some = None,
    score_key: ScoreKey = "mean_delta_p",
    max_memory: MaxMemory = None,
) -> None:
    """Sample a q_id's trials and compute the indirect effect of every head."""
    from fvcore.experiments.relation import data
    from fvcore.experiments.relation.run import units_of
    from fvcore.experiments.relation.settings import RelationSettings

    chosen = {
        "seed": seed,
        "engine": engine,
        "n_trials": n_trials,
        "n_demos": n_demos,
        "score_key": score_key,
        "topk": 1,
    }
    chosen |= {"layers": numbers(layers, "--layers"), "heads": numbers(heads, "--heads"), "max_memory": max_memory}
    settings = settings_from(RelationSettings, chosen)
    root = root_of(out, layout, relation_csv, model)
    units = units_of(data.read(relation_csv), root, settings, _q_ids(q))
    _steps(_load(model, model_spec, device, dtype, quant, threads, seed), root, q, ["sample", "stepd"], chosen, units)


@app.command("heatmap")
def run_heatmap(
    q: These_q,
    relation_csv: Csv = SHIPPED,
    out: Out = None,
    layout: Layout = "own",
    model: Annotated[str, typer.Option(envvar="FV_MODEL", help="Part of the default folder's name.")] = "",
    metric: Annotated[str, typer.Option(help="Column of aie_scores.csv.")] = "mean_delta_p",
    topk: TopK = 20,
    out_name: Annotated[str | None, typer.Option(help="The picture's name (default: aie_heatmap_<Q>.png).")] = None,
) -> None:
    """Draw a q_id's scores; the model is not needed."""
    from fvcore.experiments.steps import heatmap
    from fvcore.experiments.steps.layout import Folder

    for q_id in _asked(q):
        folder = Folder(root_of(out, layout, relation_csv, model) / q_id)
        name = out_name or _picture_of(folder, q_id, metric, topk)
        name = Path(name).name.removesuffix(".png").removeprefix("aie_heatmap_")
        with _failing():
            for path in heatmap.run(folder, metric, topk, name=name):
                console.print(f"wrote {path}", soft_wrap=True, markup=False)


@app.command("stepe")
def run_stepe(
    model: Model,
    q: These_q,
    relation_csv: Csv = SHIPPED,
    out: Out = None,
    layout: Layout = "own",
    model_spec: Spec = None,
    device: Device = None,
    dtype: Dtype = None,
    quant: Quant = None,
    threads: Threads = None,
    engine: Engine = "fast",
    seed: Seed = 0,
    score_key: ScoreKey = "mean_delta_p",
    topk: TopK = 20,
    alpha: Alpha = 1.0,
) -> None:
    """Choose a q_id's top heads and make its function vector."""
    chosen = {"seed": seed, "engine": engine, "score_key": score_key, "topk": topk, "alpha": alpha}
    lm = _load(model, model_spec, device, dtype, quant, threads, seed)
    _steps(lm, root_of(out, layout, relation_csv, model), q, ["stepe"], chosen)


@app.command("zeroshot")
def run_zeroshot(
    model: Model,
    q: These_q,
    relation_csv: Csv = SHIPPED,
    out: Out = None,
    layout: Layout = "own",
    model_spec: Spec = None,
    device: Device = None,
    dtype: Dtype = None,
    quant: Quant = None,
    threads: Threads = None,
    zeroshot_trailing_space: TrailingSpace = False,
) -> None:
    """Write the queries of a q_id's trials without demonstrations."""
    chosen = {"zeroshot_trailing_space": zeroshot_trailing_space, "topk": 1}
    lm = _load(model, model_spec, device, dtype, quant, threads, 0)
    _steps(lm, root_of(out, layout, relation_csv, model), q, ["zeroshot"], chosen)


@app.command("step6")
def run_step6(
    model: Model,
    q: These_q,
    relation_csv: Csv = SHIPPED,
    out: Out = None,
    layout: Layout = "own",
    model_spec: Spec = None,
    device: Device = None,
    dtype: Dtype = None,
    quant: Quant = None,
    threads: Threads = None,
    engine: Engine = "fast",
    seed: Seed = 0,
    alpha: Alpha = 1.0,
    edit_layer: EditLayer = "all",
    n_eval: NEval = 50,
    with_replacement: WithReplacement = False,
    step6_score_key: Step6Key = "mean_delta_logprob",
    max_memory: MaxMemory = None,
) -> None:
    """Add a q_id's vector behind a layer, or behind each, and evaluate."""
    chosen = {"seed": seed, "engine": engine, "alpha": alpha, "edit_layer": edit_layer_of(edit_layer), "topk": 1}
    chosen |= {"n_eval": n_eval, "with_replacement": with_replacement, "step6_score_key": step6_score_key}
    lm = _load(model, model_spec, device, dtype, quant, threads, seed)
    _steps(lm, root_of(out, layout, relation_csv, model), q, ["step6"], chosen | {"max_memory": max_memory})


@app.command("status")
def show_status(
    relation_csv: Csv = SHIPPED,
    out: Out = None,
    layout: Layout = "own",
    model: Annotated[str, typer.Option(envvar="FV_MODEL", help="Part of the default folder's name.")] = "",
) -> None:
    """A table of the q_ids; a completed one is checked against the digests of its files."""
    from rich.table import Table

    from fvcore.experiments.relation import status
    from fvcore.experiments.steps.layout import Folder

    root = root_of(out, layout, relation_csv, model)
    found = status.all_of(root)
    if not found:
        raise FormatError(f"{root}: holds no q_id of a run; `fvcore relation run` makes them")
    table = Table("q_id", "status", "rows", "since", "reason", box=None)
    for q_id, one in found.items():
        damaged = status.damage(Folder(root / q_id), one)
        reason = f"{one.reason} ({one.cause}, {one.step})" if one.cause else one.reason
        state = "damaged" if damaged else one.status
        note = f"missing or changed: {', '.join(damaged)}; run again" if damaged else reason
        table.add_row(q_id, state, str(one.q_row_count), one.updated_at[:19], note)
    console.print(table)


@app.command("report")
def write_report(
    relation_csv: Csv = SHIPPED,
    out: Out = None,
    layout: Layout = "own",
    model: Annotated[str, typer.Option(envvar="FV_MODEL", help="Part of the default folder's name.")] = "",
) -> None:
    """Write overview.csv and report.html again from the run's files; the model is not needed."""
    from fvcore.experiments.relation import overview, report

    root = root_of(out, layout, relation_csv, model)
    for path in (report.write(root), overview.write(root)):
        console.print(f"wrote {path}", soft_wrap=True, markup=False)


# ---------------------------------------------------------------- from options to a run


def root_of(out: Path | None, layout: str, relation_csv: Path, model: str) -> Path:
    """The run's folder."""
    from fvcore.experiments.relation.files import LAYOUTS
    from fvcore.experiments.steps.layout import safe_name

    if layout not in LAYOUTS:
        raise ModelError(f"unknown layout {layout!r} (--layout); expected own or plan")
    if out is not None:
        return out
    root = LAYOUTS[layout] / relation_csv.stem
    if layout == "plan":
        return root
    if not model:
        raise ModelError(f"the run's folder lies by model below {root}: name it with --model, or the folder with --out")
    return root / safe_name(model)


def _asked(text: str) -> list[str]:
    """q_ids of a step, of which there must be one."""
    if found := _q_ids(text):
        return found
    raise ModelError("--q: no q_id asked for; such as --q Q3,Q5")


def _picture_of(folder: Folder, q_id: str, metric: str, topk: int) -> str:
    """A run's own picture is one of its files, with a digest: another metric or number of heads gets another name."""
    from fvcore.experiments.relation import status

    found = status.read(folder)
    same = found is None or (found.config["score_key"], found.config["topk"]) == (metric, topk)
    return q_id if same else f"{q_id}_{metric}_top{topk}"


def _q_ids(text: str | None) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


def _load(
    model: str,
    spec: str | None,
    device: str | None,
    dtype: str | None,
    quant: str | None,
    threads: int | None,
    seed: int,
) -> LanguageModel:
    from fvcore.experiments.relation.threads import settle
    from fvcore.model import model as models
    from fvcore.model.model import doubts

    lm = models.load(model, device, dtype, seed=seed, spec=spec, quant=None if quant == "auto" else quant)
    settle(lm, threads)
    for doubt in doubts(lm):
        console.print(doubt, soft_wrap=True, markup=False)
    return lm


def _steps(
    lm: LanguageModel, root: Path, q: str, steps: Sequence[str], chosen: dict[str, Any], units: Sequence[Unit] = ()
) -> None:
    """Some steps in the folder of each q_id; its status stands for whole runs alone and stays as it is."""
    from fvcore.experiments.progress import Shown
    from fvcore.experiments.relation.settings import RelationSettings
    from fvcore.experiments.steps.run import run

    settings = settings_from(RelationSettings, chosen)
    sources = {unit.q_id: unit.source for unit in units}
    for q_id in _asked(q):
        with _failing():
            run(lm, root / q_id, settings, sources.get(q_id), steps, Shown(console, q_id))
        console.print(f"{q_id}: {', '.join(steps)} done in {root / q_id}", soft_wrap=True, markup=False)


@contextmanager
def _failing() -> Iterator[None]:
    """One red line: exit status 2 where a folder holds other settings, 1 where a step stops."""
    from fvcore.experiments.errors import OtherSettings, StepError

    try:
        yield
    except (ModelError, FormatError):
        raise
    except (StepError, RuntimeError) as error:
        errors.print(f"fvcore relation: {' '.join(str(error).split())}", style="red", soft_wrap=True, markup=False)
        raise typer.Exit(2 if isinstance(error, OtherSettings) else 1) from None
