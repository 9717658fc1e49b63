"""`fvcore spec ...`: which specs there are, and what a model really is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fvcore import exits
from fvcore.model.spec import ALIASES, MODEL_SPECS, ModelError

if TYPE_CHECKING:
    from fvcore.model.audit import BosAudit, ResolverSmoke

app = typer.Typer(no_args_is_help=True, help="Model specs: list them, audit a model, smoke-test its paths.")
console = Console(highlight=False)

Model = Annotated[str, typer.Argument(help="Shipped model, directory or cached hub id.")]
Spec = Annotated[str | None, typer.Option(help="Registered name, alias or YAML file (default: found).")]
Dtype = Annotated[str | None, typer.Option(help="fp32 (default), fp16 or bf16.")]
Device = Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:N or auto.")]
DeviceMap = Annotated[str | None, typer.Option(help="In place of --device: auto, balanced, sequential.")]
Quant = Annotated[str | None, typer.Option(help="none (default), 8bit or 4bit.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the JSON files (default: reports/model_spec_audit/).")]
Layout = Annotated[str, typer.Option(help="own, or plan: artifacts/model_spec_audit/.")]


@app.command("list")
def spec_list() -> None:
    """The families of the table, where they keep their parts, and their other names."""
    table = Table("spec", "blocks", "attention", "output projection", "aliases", box=None)
    for name, spec in sorted(MODEL_SPECS.items()):
        aliases = ", ".join(alias for alias, key in ALIASES.items() if key == name)
        table.add_row(name, *spec.paths, aliases)
    console.print(table)


@app.command("audit")
def spec_audit(
    model: Model,
    loaded: Annotated[bool, typer.Option("--loaded/--tokenizer-only", help="Load the weights too.")] = False,
    spec: Spec = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quant: Quant = None,
    out: Out = None,
    layout: Layout = "own",
) -> None:
    """BOS and padding as the tokenizer does them; with --loaded also the parts, sizes and dtypes of the model."""
    from fvcore.model import audit
    from fvcore.model.diagnostics import caveats, diagnostics
    from fvcore.model.model import doubts, load, load_tokenizer, spec_on_disk
    from fvcore.model.spec_files import spec_of

    folder = _folder(out, layout)
    if not loaded:
        found = spec_on_disk(model) if spec is None else spec_of(spec)
        bos, smoke = audit.bos_audit(load_tokenizer(model), found, model), audit.not_loaded(found, model)
        _tell(audit.write(folder, bos, smoke, []), bos, smoke)
        return
    lm = load(model, device, dtype, spec=spec, quant=quant, device_map=device_map)
    bos, smoke, facts = audit.bos_audit(lm.tokenizer, lm.spec, model), audit.resolver_smoke(lm, model), diagnostics(lm)
    _tell(audit.write(folder, bos, smoke, [*doubts(lm), *caveats(lm)], facts), bos, smoke, facts)


@app.command("smoke")
def spec_smoke(
    model: Model,
    spec: Spec = None,
    dtype: Dtype = None,
    device: Device = None,
    device_map: DeviceMap = None,
    quant: Quant = None,
    negative: Annotated[
        bool, typer.Option("--negative", help="Look for a part that is not there: failing is right.")
    ] = False,
    out: Out = None,
    layout: Layout = "own",
) -> None:
    """Load the model, walk the spec's paths, run "Hello" past a hook on the output projection. Exit 1 if that fails."""
    from fvcore.model import audit
    from fvcore.model.model import load, load_tokenizer, spec_on_disk
    from fvcore.model.spec_files import spec_of

    try:
        lm = load(model, device, dtype, spec=spec, quant=quant, device_map=device_map)
    except ModelError as error:
        found = spec_on_disk(model) if spec is None else spec_of(spec)
        bos, smoke = (
            audit.bos_audit(load_tokenizer(model), found, model),
            audit.failed_to_load(found, model, error),
        )
    else:
        bos, smoke = audit.bos_audit(lm.tokenizer, lm.spec, model), audit.resolver_smoke(lm, model, negative)
    _tell(audit.write(_folder(out, layout), bos, smoke, []), bos, smoke)
    if not smoke.ok:
        raise typer.Exit(exits.FAILED)


@app.command(
    "parity",
    hidden=True,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    add_help_option=False,
)
def spec_parity() -> None:
    """Reduced parity is a run of the harness, which the library does not know."""
    typer.echo("fvcore spec: parity is the harness's: run `fvparity spec parity` with the same words", err=True)
    raise typer.Exit(exits.USAGE)


def _folder(out: Path | None, layout: str) -> Path:
    from fvcore.model import audit

    folders = {"own": audit.FOLDER, "plan": audit.PLAN_FOLDER}
    if layout not in folders:
        raise ModelError(f"--layout: expected {' or '.join(folders)}, found {layout!r}")
    return folders[layout] if out is None else out


def _tell(files: list[Path], bos: BosAudit, smoke: ResolverSmoke, facts: dict[str, Any] | None = None) -> None:
    """The audit as tables, and where its files lie."""
    _print("tokenizer", bos.model_dump())
    _print("resolver", smoke.model_dump() | {"ok": smoke.ok})
    if facts is not None:
        _print("model", facts)
    for file in files:
        typer.echo(f"wrote {file}")


def _print(title: str, facts: dict[str, Any]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        table.add_row(name, "-" if value is None else escape(_text(value)))
    console.print(table)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" if name else str(item) for name, item in value.items())
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
