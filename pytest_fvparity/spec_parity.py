"""`fvcore spec parity`: a model that nobody tried yet, through all six keys against the reference, on one trial.

It asks whether the whole way can be gone with this model, not whether the numbers agree: it ends well when every stage came
to a verdict and the files are written.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

console = Console(highlight=False)

SEED, N_HEADS = 42, 5
NO_VERDICT = {"ERROR", "CRASHED", "REFUSED", "NOT_RUN"}


def parity(
    model: Annotated[str, typer.Argument(help="Shipped model, directory or cached hub id.")],
    fv_src: Annotated[Path, typer.Option(help="Checkout of the reference, which runs live; no golden is needed.")],
    fv_src_python: Annotated[str | None, typer.Option(help="Interpreter that runs the reference.")] = None,
    fv_spec: Annotated[str | None, typer.Option(help="Registered spec, alias or YAML file.")] = None,
    dataset_json: Annotated[
        Path | None,
        typer.Option(help="Raw dataset the trial is drawn from (default: the shipped model's, else antonym)."),
    ] = None,
    edit_layer: Annotated[int | None, typer.Option(help="Default: the middle of the model.")] = None,
    n_shots: Annotated[int, typer.Option(min=1)] = 10,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<k>.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32",
    out: Annotated[Path, typer.Option(help="Folder of the trial and the report.")] = Path("reports/spec_parity"),
    strict: Annotated[bool, typer.Option("--strict", help="Status 1 also where the numbers differ.")] = False,
) -> None:
    """One trial, five heads, seed 42, live reference: status 1 only if a stage comes to no verdict."""
    from fvcore import models, prompts, trials
    from pytest_fvparity.render import REPORT, read_report

    tokenizer, raw = models.load_tokenizer(model), dataset_json or _dataset(model)
    meta = trials.Meta(
        dataset_json=raw.as_posix(),
        seed=SEED,
        n_trials=1,
        n_shots=n_shots,
        model_name_for_tokenizer=model,
        model_prepend_bos=prompts.BosFacts.of(tokenizer).adds_bos,
    )
    drawn = prompts.sample_trials(tokenizer, trials.read_pairs(raw), meta)
    path = out.resolve() / trials.file_name(meta)
    trials.write(path, drawn)
    words = [
        *(sys.executable, "-m", "pytest", "-m", "parity", "-q", "-p", "no:cacheprovider", "--fv-live"),
        f"--fv-src={fv_src.resolve()}",
        f"--fv-model={model}",
        f"--fv-trials={path}",
        f"--fv-top-heads={N_HEADS}",
        f"--fv-edit-layer={_middle(model) if edit_layer is None else edit_layer}",
        f"--fv-seed={SEED}",
        f"--fv-device={device}",
        f"--fv-dtype={dtype}",
        f"--fv-report-dir={out.resolve()}",
        *([f"--fv-src-python={fv_src_python}"] if fv_src_python else []),
        *([f"--fv-spec={fv_spec}"] if fv_spec else []),
    ]
    fixed = trials.read(path)
    written = out.resolve() / fixed.dataset / fixed.id / f"{REPORT}.json"
    written.unlink(missing_ok=True)
    code = subprocess.run(words, check=False).returncode
    if not written.is_file():
        raise trials.TrialsError(
            f"{model}: pytest ended with status {code} and wrote no report; what it printed says why"
        )
    report = read_report(written)
    stuck = [check for check in report.checks if check.status in NO_VERDICT]
    console.print(f"{model}: {report.headline}", soft_wrap=True, markup=False)
    console.print(
        f"{'not every stage came to a verdict' if stuck else 'all stages came to a verdict'}: {written}", markup=False
    )
    if stuck or (strict and report.overall_status != "PASS"):
        raise typer.Exit(1)


def _dataset(model: str) -> Path:
    """What the shipped model's trials were drawn from, else the antonyms."""
    from fvcore.trials import read
    from pytest_fvparity import shipped

    known = shipped.trials_of(model, Path.cwd())
    name = Path(read(known).meta.dataset_json) if known else Path("datasets/antonym/raw/antonym.json")
    return name if name.is_file() else shipped.root() / name


def _middle(model: str) -> int:
    from transformers import AutoConfig

    from fvcore import models

    config = AutoConfig.from_pretrained(str(models.resolve(model)), local_files_only=True)
    return int(config.get_text_config().num_hidden_layers) // 2
