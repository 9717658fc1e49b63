"""`fvcore spec engines`, beside what the model's own commands are: whether engine fast holds here."""

from typing import Annotated

import typer

from fvcore import exits, terminal
from fvcore.model.commands import Device, Dtype, Model, Spec
from fvcore.model.commands import app as app


@app.command("engines")
def spec_engines(
    model: Model,
    spec: Spec = None,
    dtype: Dtype = None,
    device: Device = None,
    attn: Annotated[str | None, typer.Option(help="eager, sdpa, ... (default: the library's).")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Both engines beside one another on this model and these libraries: some heads replaced, vectors added. Exit 1 if apart."""
    from fvcore.fast.engines import apart
    from fvcore.model.model import load

    rows = list(apart(load(model, device, dtype, attn, spec=spec)))
    told = [{"logits": row.what, "apart": f"{row.off:.3g}", "allowed": f"{row.allowed:.3g}"} for row in rows]
    terminal.show(told, as_json)
    if not all(row.within for row in rows):
        exits.say("engine fast does not hold here: a run takes exact in its place, and says so")
        raise typer.Exit(exits.FAILED)
