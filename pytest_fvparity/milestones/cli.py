"""`fvparity milestone m0 ... m7`: the antonym plan, a command a milestone, and its transfer to a relation."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fvcore.formats import FormatError
from pytest_fvparity.shipped import DEFAULT_MODEL

console = Console(highlight=False)

NAMES = ("M0", "M1", "M2", "M3", "M4", "M5", "M6")
TRANSFER = "M7"


def milestone(
    which: Annotated[
        str, typer.Argument(help="m0 to m7, or all in order: M7 with --relation-root.", metavar="m0..m7|all")
    ],
    model: Annotated[str, typer.Option(help="Shipped model, directory or cached hub id.")] = DEFAULT_MODEL,
    trials: Annotated[Path | None, typer.Option(help="Fixed-trials file (default: the shipped model's).")] = None,
    profile: Annotated[str, typer.Option(help="Lock profile: antonym-lock, or a YAML file.")] = "antonym-lock",
    layout: Annotated[
        str, typer.Option(help="own: reports/milestones/<dataset>/<trials>. plan: results/ and results_fv/.")
    ] = "own",
    out: Annotated[
        Path | None, typer.Option(help="Root of the layout (default: reports; the current folder for plan).")
    ] = None,
    dataset_json: Annotated[
        Path | None,
        typer.Option(help="Raw dataset, for M0 and for M4's sampled trials (default: what the file names)."),
    ] = None,
    fv_src: Annotated[Path | None, typer.Option(help="Checkout of the reference: M1 records it.")] = None,
    fv_src_python: Annotated[str | None, typer.Option(help="Interpreter that runs the reference.")] = None,
    golden: Annotated[
        Path | None, typer.Option(help="Folder of goldens (default: M1's, the project's, the shipped).")
    ] = None,
    reference_profile: Annotated[str, typer.Option(help="src or todd_upstream.")] = "src",
    edit_layer: Annotated[int | None, typer.Option(help="Default: the golden's, else the profile's.")] = None,
    top_heads: Annotated[int | None, typer.Option(help="Default: the golden's, else the profile's.")] = None,
    token_class: Annotated[int | None, typer.Option(help="Default: the golden's, else the profile's.")] = None,
    max_trials: Annotated[
        int | None, typer.Option(min=1, help="Trials that M2 compares (default: the profile's).")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<k>.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    spec: Annotated[str | None, typer.Option(help="Registered spec, alias or YAML file (default: found).")] = None,
    quant: Annotated[str, typer.Option(help="none, 8bit or 4bit.")] = "none",
    n_eval: Annotated[int, typer.Option(min=1, help="Queries that M4 evaluates.")] = 50,
    topk: Annotated[int, typer.Option(min=1, help="Heads in M4's vector.")] = 20,
    relation_root: Annotated[
        Path | None, typer.Option(help="M7: the folder of a relation run, one folder a q_id.")
    ] = None,
    pytest_option: Annotated[
        list[str] | None,
        typer.Option(help="Handed to pytest as it is, e.g. --fv-candidate=pkg.mod:make; may be given again."),
    ] = None,
) -> None:
    """Run a milestone of the antonym plan and check its pass criterion. Status 1 if it does not meet it."""
    from pytest_fvparity import shipped
    from pytest_fvparity.milestones.layout import LAYOUTS
    from pytest_fvparity.milestones.lock import Lock
    from pytest_fvparity.milestones.run import run_all
    from pytest_fvparity.milestones.setup import Setup

    names = (*NAMES, *([TRANSFER] if relation_root else [])) if which.lower() == "all" else (which.upper(),)
    if not set(names) <= {*NAMES, TRANSFER}:
        raise FormatError(f"no milestone {which!r}; expected {', '.join(NAMES)}, {TRANSFER} or all")
    if layout not in LAYOUTS:
        raise FormatError(f"--layout: expected one of {', '.join(LAYOUTS)}, found {layout!r}")
    trials = trials or shipped.trials_of(model, Path.cwd())
    if trials is None:
        raise FormatError(
            f"{model} is no shipped model, so --trials is needed: fvcore trials make --dataset-json FILE --tokenizer {model}"
        )
    setup = Setup(
        model=model,
        trials=trials.resolve(),
        lock=Lock.load(profile),
        root=(out or Path("." if layout == "plan" else "reports")).resolve(),
        layout_kind=layout,
        dataset_json=dataset_json,
        src=fv_src and fv_src.resolve(),
        src_python=fv_src_python,
        golden=golden and golden.resolve(),
        reference_profile=reference_profile,
        edit_layer=edit_layer,
        n_top_heads=top_heads,
        token_class_idx=token_class,
        max_trials=max_trials,
        device=device,
        dtype=dtype,
        spec=spec,
        quant=quant,
        n_eval=n_eval,
        topk=topk,
        relation_root=relation_root and relation_root.resolve(),
        more=tuple(pytest_option or ()),
    )
    passed = True
    for name, outcome in run_all(names, setup):
        passed = passed and outcome.passed
        word = "[green]PASS[/]" if outcome.passed else "[red]FAIL[/]"
        console.print(f"{name} {word}", end=" ")
        console.print(outcome.message, soft_wrap=True, markup=False)
        for line in _told(outcome.files):
            console.print(f"   {line}", soft_wrap=True, markup=False)
    if not passed:
        raise typer.Exit(1)


MANY = 8


def _told(files: list[Path]) -> list[str]:
    """The files, or how many there are of each folder."""
    if len(files) <= MANY:
        return [_short(file) for file in files]
    folders = Counter(file.parent for file in files)
    return [f"{_short(folder)}: {n} file{'s' if n > 1 else ''}" for folder, n in folders.items()]


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
