"""`fvcore spec ...`: which specs there are, and what a model really is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fvcore import exits, terminal
from fvcore.formats import json_text
from fvcore.model.spec import ALIASES, MODEL_SPECS, ModelError
from fvcore.profile import MOST_SEED

if TYPE_CHECKING:
    from fvcore.model.audit import ResolverSmoke

app = typer.Typer(no_args_is_help=True, help="Model specs: list them, audit a model, smoke-test its paths.")
FOLDERS = {"own": Path("reports", "model_spec_audit"), "plan": Path("artifacts", "model_spec_audit")}

Model = Annotated[str, typer.Argument(help="Shipped model, directory or cached hub id.")]
Spec = Annotated[str | None, typer.Option(help="Registered name, alias or YAML file (default: found).")]
Dtype = Annotated[str | None, typer.Option(help="fp32 (default), fp16 or bf16.")]
Device = Annotated[str | None, typer.Option(help="cpu (default), cuda, cuda:N or auto.")]
DeviceMap = Annotated[str | None, typer.Option(help="In place of --device: auto, balanced, sequential.")]
Quant = Annotated[str | None, typer.Option(help="none (default), 8bit or 4bit.")]
Out = Annotated[Path | None, typer.Option(help="Folder of the JSON files (default: reports/model_spec_audit/).")]
Layout = Annotated[str, typer.Option(help="own, or plan: artifacts/model_spec_audit/.")]


@app.command("list")
def spec_list(as_json: terminal.Json = False) -> None:
    """The families of the table, where they keep their parts, and their other names."""
    names = ("spec", "blocks", "attention", "output projection", "aliases")
    other = {name: ", ".join(alias for alias, key in ALIASES.items() if key == name) for name in MODEL_SPECS}
    rows = [(name, *spec.paths, other[name]) for name, spec in sorted(MODEL_SPECS.items())]
    terminal.show([dict(zip(names, row, strict=True)) for row in rows], as_json, whole="spec")


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
    as_json: terminal.Json = False,
) -> None:
    """BOS and padding as the tokenizer does them; with --loaded also the parts, sizes and dtypes of the model."""
    from fvcore.model import audit
    from fvcore.model.diagnostics import diagnostics
    from fvcore.model.model import load

    folder = _folder(out, layout)
    if not loaded:
        _write(folder, as_json, *_on_disk(model, spec))
        return
    lm = load(model, device, dtype, spec=spec, quant=quant, device_map=device_map)
    bos, smoke = audit.bos_audit(lm.tokenizer, lm.spec, model), audit.resolver_smoke(lm, model)
    _write(folder, as_json, bos, smoke, diagnostics(lm))


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
    as_json: terminal.Json = False,
) -> None:
    """Load the model, walk the spec's paths, run "Hello" past a hook on the output projection. Exit 1 if that fails."""
    from fvcore.model import audit
    from fvcore.model.model import load

    try:
        lm = load(model, device, dtype, spec=spec, quant=quant, device_map=device_map)
    except ModelError as error:
        bos, smoke = _on_disk(model, spec, error)
    else:
        bos, smoke = audit.bos_audit(lm.tokenizer, lm.spec, model), audit.resolver_smoke(lm, model, negative)
    _write(_folder(out, layout), as_json, bos, smoke)
    if not smoke.ok:
        raise typer.Exit(exits.FAILED)


@app.command("shrink")
def spec_shrink(
    model: Model,
    out: Annotated[Path, typer.Option(help="The small model's folder, which is made.")],
    trials: Annotated[
        Path, typer.Option(help="Trials that it is to be judged on, or a raw dataset: their answers are likely to it.")
    ] = Path("antonym"),
    layers: Annotated[int | None, typer.Option(min=1, help="Default: 2; 4 where layers are of several kinds.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 0,
) -> None:
    """Write a small model of the same architecture and tokenizer, weights drawn: a rewrite is gated on it in seconds."""
    from fvcore.embedded.shrink import shrink

    small = shrink(model, out, trials, layers, seed)
    size = sum(file.stat().st_size for file in out.iterdir())
    exits.tell(f"wrote {out}: {small}, {small.hf.num_parameters():,} parameters, {size / 2**20:.0f} MiB, seed {seed}")


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
    if layout not in FOLDERS:
        raise ModelError(f"--layout: expected {' or '.join(FOLDERS)}, found {layout!r}")
    return FOLDERS[layout] if out is None else out


def _on_disk(model: str, spec: str | None, error: ModelError | None = None) -> tuple[dict[str, Any], ResolverSmoke]:
    """The audit without the weights; `error` says why they could not be loaded."""
    from fvcore.model import audit
    from fvcore.model.model import load_tokenizer, spec_on_disk
    from fvcore.model.spec import spec_of

    found = spec_on_disk(model) if spec is None else spec_of(spec)
    return audit.bos_audit(load_tokenizer(model), found, model), audit.not_loaded(found, model, error)


def _write(
    folder: Path, as_json: bool, bos: dict[str, Any], smoke: ResolverSmoke, facts: dict[str, Any] | None = None
) -> None:
    """The audit's files; what they say as tables or as JSON, and where they lie."""
    from fvcore.model import audit

    files = audit.write(folder, bos, smoke, facts)
    told = {"tokenizer": bos, "resolver": vars(smoke) | {"ok": smoke.ok}} | ({"model": facts} if facts else {})
    if as_json:
        typer.echo(json_text(told))
        return
    for title, found in told.items():
        terminal.show([{title: name, "": _text(value)} for name, value in found.items()])
    for file in files:
        exits.note(f"wrote {file}")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}: {item}" if name else str(item) for name, item in value.items())
    return "-" if value is None else ", ".join(map(str, value)) or "-" if isinstance(value, list) else str(value)
