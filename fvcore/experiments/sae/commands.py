"""What stands around the steps of `fvcore pathways`: its autoencoders, its self-test, its planted faults, the plan's folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Annotated

import typer

from fvcore import exits, terminal
from fvcore.exits import tell as tell
from fvcore.experiments.sae.config import Info, Training
from fvcore.formats import json_text, read_text

if TYPE_CHECKING:
    from fvcore.experiments.sae.autoencoder import SAE
    from fvcore.experiments.sae.health import Health
    from fvcore.experiments.sae.train import TrainingReport

N_PROMPTS = 36


def train_sae(command: Training) -> None:
    """Train an autoencoder for each layer of a shipped model, and judge them; exit status 1 if one is not good enough."""
    from fvcore.experiments.progress import Shown
    from fvcore.experiments.sae.train import train

    report = train(command, Shown(terminal.console(stderr=True)))
    if command.as_json:
        typer.echo(json_text(report.model_dump(mode="json")))
    else:
        exits.tell(*trained(report))
        exits.note(f"wrote {command.out}")
    if report.failures:
        raise typer.Exit(exits.FAILED)


def trained(report: TrainingReport) -> Iterator[str]:
    yield f"{report.model}: accuracy {report.clean_accuracy:.3f}; trained on {report.n_tokens:,} tokens"
    yield "layer  unexplained  active  dead  accuracy through it"
    for row in report.layers:
        yield f"{row.layer:5}  {row.fvu:11.3f}  {row.l0:6.1f}  {row.dead:4}  {row.spliced_accuracy:19.3f}"
    yield from report.failures


def sae_info(command: Info) -> None:
    """Say what an autoencoder is, and with --model how it does on that model; exit status 1 if something is wrong with it."""
    from fvcore.experiments.sae.loaders import load

    sae = load(command.folder, format=command.format, gating=command.gating)
    found = _health(sae, command)
    told = found.model_dump(mode="json") | {"info": sae.info}
    if command.as_json:
        typer.echo(json_text(told))
    else:
        for name, value in told.items():
            if value is not None and name not in {"findings", "info"}:
                exits.tell(f"{name:11} {_text(value)}")
        for name, value in sae.info.items():
            exits.tell(f"{name:11} {_text(value)}")
        for sentence in found.findings:
            exits.tell(sentence)
    if found.findings:
        raise typer.Exit(exits.FAILED)


def _text(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(_text, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _health(sae: SAE, command: Info) -> Health:
    from fvcore.experiments.sae.bench import DTYPES
    from fvcore.experiments.sae.health import health
    from fvcore.experiments.sae.streams import questions, taken_for
    from fvcore.model.model import load

    if command.model is None:
        return health(sae)
    lm = load(command.model, device=command.device, dtype=DTYPES[command.dtype])
    if command.read is None:
        prompts = [one.input_ids for one in questions(lm, N_PROMPTS, Random(0))]
    else:
        prompts = [tuple(lm.tokenizer(line).input_ids) for line in read_text(command.read).splitlines() if line.strip()]
    lm.require_layer(sae.layer)
    streams = taken_for(lm, prompts)
    return health(sae.to(lm.device), streams.pop(f"layer {sae.layer}"), streams)


def selftest(
    seed: Annotated[int, typer.Option(min=0, help="Of the planted models.")] = 0,
    markdown: Annotated[Path | None, typer.Option(help="A page to write the tables into, between its marks.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Find planted causes, beside what other methods find; exit status 1 where one is missed or a decoy is taken for one."""
    from fvcore.experiments.sae import selftest as on_trial

    found = on_trial.selftest(seed)
    if as_json:
        typer.echo(json_text(found))
    else:
        typer.echo(on_trial.markdown(found))
        for said, held in found["criteria"].items():
            exits.tell(f"{'yes' if held else 'NO'}: {said}")
        exits.tell(f"{found['seconds']:g} s")
    if markdown:
        on_trial.put_into(markdown, found)
    if not found["passed"]:
        raise typer.Exit(exits.FAILED)


def show_faults(
    markdown: Annotated[Path | None, typer.Option(help="Write the table to this file.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Look for pathways wrongly in every known way; exit status 1 if one is not caught by what must catch it."""
    from fvcore.experiments.fault_table import show
    from fvcore.experiments.sae import faults

    show(faults.rows(), lambda row: faults.rounded(row.seen.value), faults.write, markdown, as_json)


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write; its files must not be there yet.")],
) -> None:
    """Write the plan's folder: config.yaml, launch.sh, and its seven source files as short callers."""
    from fvcore.experiments.sae import init as made

    for path in made.write(folder):
        exits.note(f"wrote {path}")
