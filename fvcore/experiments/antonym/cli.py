"""`fvcore runtime ...`: the production steps, all in order or one by one in a run's folder."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from rich.console import Console

from fvcore.formats import FormatError
from fvcore.model.spec import ModelError

if TYPE_CHECKING:
    from fvcore.experiments.steps.run import Source
    from fvcore.experiments.steps.settings import Settings

Chosen = TypeVar("Chosen", bound="Settings")

app = typer.Typer(no_args_is_help=True, help="The production steps: StepD, heat map, StepE, zero-shot snapshot, Step6.")
console = Console(highlight=False)
errors = Console(stderr=True, highlight=False)

Out = Annotated[Path | None, typer.Option(help="The run's folder (default: under reports/runtime/).")]
Folder = Annotated[Path, typer.Option("--out", help="The run's folder, with the earlier steps' files in it.")]
Model = Annotated[str, typer.Option(envvar="FV_MODEL", help="Shipped model, directory or cached hub id.")]
Device = Annotated[str | None, typer.Option(envvar="FV_DEVICE", help="Default: the spec's, else cpu.")]
Dtype = Annotated[
    str | None, typer.Option(envvar="FV_DTYPE", help="fp32, fp16 or bf16 (default: the spec's, else fp32).")
]
SpecName = Annotated[
    str | None, typer.Option(envvar="FV_MODEL_SPEC", help="Registered spec, alias or YAML file (default: found).")
]
Quant = Annotated[
    str | None, typer.Option(envvar="FV_QUANT", help="none, 8bit or 4bit (default: the spec's, else none).")
]
Engine = Annotated[str, typer.Option(help="fast, where it holds for the model, or exact.")]
Seed = Annotated[int, typer.Option(min=0)]
TrialsFile = Annotated[Path | None, typer.Option("--trials", help="Fixed trials; they set n_trials and n_shots.")]
Dataset = Annotated[Path | None, typer.Option(help="Raw dataset that trials are sampled from.")]
NTrials = Annotated[int | None, typer.Option(min=1, help="Of a dataset (default: 10).")]
NShots = Annotated[int | None, typer.Option(min=2, help="Of a dataset (default: 10).")]
Some = Annotated[str | None, typer.Option(help="Such as 0,2,5-7 (default: all).")]
ScoreKey = Annotated[str, typer.Option(help="Column of the scores by which heads are chosen.")]
TopK = Annotated[int, typer.Option("--topk", min=1, help="Heads in the vector; never lowered silently.")]
Alpha = Annotated[float, typer.Option(help="How strongly the vector is added.")]
TrailingSpace = Annotated[bool, typer.Option("--zeroshot-trailing-space", help="The plan's literal prompt.")]
EditLayer = Annotated[str, typer.Option(help="A layer, or all.")]
NEval = Annotated[int, typer.Option(min=1, help="Examples asked for; there may be fewer unique queries.")]
WithReplacement = Annotated[
    bool, typer.Option("--with-replacement", help="Exactly n-eval examples, drawn again and again.")
]
Step6Key = Annotated[str, typer.Option(help="By which the best layer is chosen.")]
MaxMemory = Annotated[int | None, typer.Option(help="Bytes beside the weights; half of what is free by default.")]


@app.command("run")
def run_all(
    model: Model,
    trials: TrialsFile = None,
    dataset_json: Dataset = None,
    out: Out = None,
    n_trials: NTrials = None,
    n_shots: NShots = None,
    device: Device = None,
    dtype: Dtype = None,
    model_spec: SpecName = None,
    quant: Quant = None,
    engine: Engine = "fast",
    seed: Seed = 0,
    layers: Some = None,
    heads: Some = None,
    score_key: ScoreKey = "mean_delta_p",
    topk: TopK = 20,
    alpha: Alpha = 1.0,
    zeroshot_trailing_space: TrailingSpace = False,
    edit_layer: EditLayer = "all",
    n_eval: NEval = 50,
    with_replacement: WithReplacement = False,
    step6_score_key: Step6Key = "mean_delta_logprob",
    max_memory: MaxMemory = None,
    pictures: Annotated[bool, typer.Option("--heatmap/--no-heatmap", help="Draw the heat map (matplotlib).")] = True,
) -> None:
    """All steps in order; what is done already is not run again."""
    from fvcore.experiments.steps.run import STEPS

    steps = [step for step in STEPS if pictures or step != "heatmap"]
    source = _source(trials, dataset_json, n_trials, n_shots, seed)
    chosen = {
        "seed": seed,
        "engine": engine,
        "layers": numbers(layers, "--layers"),
        "heads": numbers(heads, "--heads"),
        "score_key": score_key,
        "topk": topk,
        "alpha": alpha,
        "zeroshot_trailing_space": zeroshot_trailing_space,
        "edit_layer": edit_layer_of(edit_layer),
        "n_eval": n_eval,
        "with_replacement": with_replacement,
        "step6_score_key": step6_score_key,
        "max_memory": max_memory,
    }
    _run(
        Loading(model, device, dtype, model_spec, quant),
        out or _default_out(trials or dataset_json, model),
        steps,
        chosen,
        source,
    )


@app.command("stepd")
def run_stepd(
    model: Model,
    trials: TrialsFile = None,
    dataset_json: Dataset = None,
    out: Out = None,
    n_trials: NTrials = None,
    n_shots: NShots = None,
    device: Device = None,
    dtype: Dtype = None,
    model_spec: SpecName = None,
    quant: Quant = None,
    engine: Engine = "fast",
    seed: Seed = 0,
    layers: Some = None,
    heads: Some = None,
    score_key: ScoreKey = "mean_delta_p",
    max_memory: MaxMemory = None,
) -> None:
    """Sample the trials and compute the indirect effect of every head."""
    source = _source(trials, dataset_json, n_trials, n_shots, seed)
    chosen = {"seed": seed, "engine": engine, "score_key": score_key, "max_memory": max_memory, "topk": 1}
    chosen |= {"layers": numbers(layers, "--layers"), "heads": numbers(heads, "--heads")}
    folder = out or _default_out(trials or dataset_json, model)
    _run(Loading(model, device, dtype, model_spec, quant), folder, ["sample", "stepd"], chosen, source)


@app.command("stepe")
def run_stepe(
    out: Folder,
    model: Model,
    device: Device = None,
    dtype: Dtype = None,
    model_spec: SpecName = None,
    quant: Quant = None,
    engine: Engine = "fast",
    seed: Seed = 0,
    score_key: ScoreKey = "mean_delta_p",
    topk: TopK = 20,
    alpha: Alpha = 1.0,
) -> None:
    """Choose the top heads and make the function vector."""
    chosen = {"seed": seed, "engine": engine, "score_key": score_key, "topk": topk, "alpha": alpha}
    _run(Loading(model, device, dtype, model_spec, quant), out, ["stepe"], chosen)


@app.command("zeroshot")
def run_zeroshot(
    out: Folder,
    model: Model,
    device: Device = None,
    dtype: Dtype = None,
    model_spec: SpecName = None,
    quant: Quant = None,
    zeroshot_trailing_space: TrailingSpace = False,
) -> None:
    """Write the sampled trials' queries without demonstrations."""
    chosen = {"zeroshot_trailing_space": zeroshot_trailing_space, "topk": 1}
    _run(Loading(model, device, dtype, model_spec, quant), out, ["zeroshot"], chosen)


@app.command("step6")
def run_step6(
    out: Folder,
    model: Model,
    device: Device = None,
    dtype: Dtype = None,
    model_spec: SpecName = None,
    quant: Quant = None,
    engine: Engine = "fast",
    seed: Seed = 0,
    alpha: Alpha = 1.0,
    edit_layer: EditLayer = "all",
    n_eval: NEval = 50,
    with_replacement: WithReplacement = False,
    step6_score_key: Step6Key = "mean_delta_logprob",
    max_memory: MaxMemory = None,
) -> None:
    """Add the vector behind a layer, or behind each, and evaluate."""
    chosen = {"seed": seed, "engine": engine, "alpha": alpha, "edit_layer": edit_layer_of(edit_layer), "n_eval": n_eval}
    chosen |= {"with_replacement": with_replacement, "step6_score_key": step6_score_key, "max_memory": max_memory}
    _run(Loading(model, device, dtype, model_spec, quant), out, ["step6"], chosen | {"topk": 1})


@app.command("heatmap")
def run_heatmap(
    out: Folder,
    metric: Annotated[str, typer.Option(help="Column of aie_scores.csv.")] = "mean_delta_p",
    topk: TopK = 20,
    out_name: Annotated[str, typer.Option(help="The picture is aie_heatmap_<name>.png.")] = "all",
) -> None:
    """Draw the scores; the model is not needed."""
    from fvcore.experiments.steps import heatmap
    from fvcore.experiments.steps.layout import Folder as RunFolder

    name = Path(out_name).name.removesuffix(".png").removeprefix("aie_heatmap_")
    with _failing():
        for path in heatmap.run(RunFolder(out), metric, topk, name=name):
            console.print(f"wrote {path}", soft_wrap=True, markup=False)


# ---------------------------------------------------------------- from options to a run


@dataclass(frozen=True)
class Loading:
    """The model, and how it is loaded."""

    model: str
    device: str | None
    dtype: str | None
    spec: str | None
    quant: str | None


def _run(
    how: Loading,
    out: Path,
    steps: list[str],
    chosen: dict[str, Any],
    source: Source | None = None,
) -> None:
    from fvcore.experiments.progress import Shown
    from fvcore.experiments.steps.run import run
    from fvcore.experiments.steps.settings import Settings
    from fvcore.model import model as models

    settings = settings_from(Settings, chosen)
    lm = models.load(how.model, how.device, how.dtype, seed=settings.seed, spec=how.spec, quant=asked_quant(how.quant))
    with _failing():
        run(lm, out, settings, source, steps, Shown(console))
    console.print(f"{', '.join(steps)} done in {out}", soft_wrap=True, markup=False)


def asked_quant(quant: str | None) -> str | None:
    """`auto` is the plans' word for what nobody asked for."""
    return None if quant == "auto" else quant


def settings_from(kind: type[Chosen], chosen: dict[str, Any]) -> Chosen:
    """Settings of options; raises ModelError with the option that does not fit."""
    from pydantic import ValidationError

    from fvcore.formats import sentence

    try:
        return kind.model_validate(chosen)
    except ValidationError as error:
        raise ModelError(sentence(error, named=lambda name: "--" + name.partition(".")[0].replace("_", "-"))) from None


@contextmanager
def _failing() -> Iterator[None]:
    """A target id, a shape, a hook or a number that is wrong: one red line and exit status 1."""
    from fvcore.experiments.errors import StepError

    try:
        yield
    except (ModelError, FormatError):
        raise
    except (StepError, RuntimeError) as error:  # torch says a wrong shape, and we a silent hook, by RuntimeError
        text = " ".join(str(error).split())
        errors.print(f"fvcore runtime: {text}", style="red", soft_wrap=True, markup=False)
        raise typer.Exit(1) from None


def _source(
    trials: Path | None, dataset_json: Path | None, n_trials: int | None, n_shots: int | None, seed: int
) -> Source:
    from fvcore.experiments.steps.sampled import DatasetSource, FixedSource

    if (trials is None) == (dataset_json is None):
        raise ModelError("give either --trials FILE or --dataset-json FILE: trials are fixed or sampled, not both")
    if trials is not None:
        if n_trials or n_shots:
            console.print("--trials sets n_trials and n_shots; --n-trials and --n-shots are not used")
        return FixedSource(trials)
    assert dataset_json is not None
    return DatasetSource(dataset_json, n_trials or 10, n_shots or 10, seed)


def _default_out(data: Path | None, model: str) -> Path:
    from fvcore.experiments.steps.layout import safe_name

    return Path("reports", "runtime", data.stem if data else "run", safe_name(model))


def edit_layer_of(text: str) -> int | str:
    if text == "all":
        return text
    try:
        return int(text)
    except ValueError:
        raise ModelError(f"--edit-layer {text!r}: expected a layer's number or all") from None


def numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """`0,2,5-7` -> 0, 2, 5, 6, 7."""
    if text is None:
        return None
    if not re.fullmatch(r"\d+(-\d+)?(,\d+(-\d+)?)*", text.replace(" ", "")):
        raise ModelError(f"{option} {text!r}: expected numbers and ranges such as 0,2,5-7")
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return tuple(found)
