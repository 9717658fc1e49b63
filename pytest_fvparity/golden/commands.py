"""`fvparity golden ...`: look after goldens. Nothing here removes one; what could be is printed for a person to run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fvcore import exits, terminal

if TYPE_CHECKING:
    from pytest_fvparity.golden.listing import GoldenRow

app = typer.Typer(no_args_is_help=True, help="Look after goldens: list, split in two tiers, fetch, export, import.")

Place = Annotated[Path, typer.Argument(help="A golden's own folder: golden/<dataset>/<trials>/<profile>.")]


@app.command("list")
def list_goldens(
    root: Annotated[
        list[Path] | None, typer.Option(help="Folder of goldens (default: fv_golden of the ini file, else golden).")
    ] = None,
    trials: Annotated[
        list[Path] | None,
        typer.Option(
            help="Trials file, or a folder of some (default: datasets/fixed_trials, datasets/relation, and those beside "
            "fv_trials of the ini file)."
        ),
    ] = None,
    as_json: terminal.Json = False,
    strict: Annotated[bool, typer.Option(help="Status 1 if a golden is stale or damaged.")] = False,
) -> None:
    """Every golden: current, stale, damaged or unused, and what killed recordings left. Nothing is removed."""
    from fvcore.formats import json_text
    from pytest_fvparity.golden import listing

    usual, relation = Path("datasets", "fixed_trials"), Path("datasets", "relation")
    there = [*listing.of_ini("fv_trials"), *(folder for folder in (usual, relation) if folder.is_dir())]
    known = listing.trials_under(trials or there or [usual])
    rows = listing.rows(root or listing.of_ini("fv_golden") or [Path("golden")], known)
    if as_json:
        typer.echo(json_text([row.model_dump() for row in rows]))
    else:
        terminal.show([_told(row) for row in rows])
        for row in rows:
            told = {f"{row.path}: {row.state}: {row.what}": row.what, f"  {row.remove}": row.remove}
            say(*(line for line, said in told.items() if said))
        say(f"{len(rows)} golden(s)" if rows else "no golden")
    if strict and any(row.state in {"stale", "damaged"} for row in rows):
        raise typer.Exit(exits.FAILED)


def _told(row: GoldenRow) -> dict[str, str]:
    from pytest_fvparity.golden.manifest import SCHEMA_VERSION

    behind = SCHEMA_VERSION - (row.schema_version or SCHEMA_VERSION)
    schema = "-" if row.schema_version is None else str(row.schema_version)
    return {
        "golden": row.path,
        "model": row.model or "-",
        "schema": f"{schema} ({behind} behind)" if behind > 0 else schema,
        "core": _size(row.core_bytes),
        "full": f"{_size(row.full_bytes_here)} of {_size(row.full_bytes)}" if row.full_bytes else "-",
        "state": row.state,
    }


@app.command()
def split(
    golden: Place,
    full_to: Annotated[str, typer.Option(help="Folder or URL (file, s3, gs or hf) to store the full tier at.")],
    url: Annotated[
        str | None, typer.Option(help="URL that the manifest names (default: --full-to, if it is one).")
    ] = None,
) -> None:
    """Keep a core that fits git, and store the large tensors elsewhere."""
    from pytest_fvparity.golden import stores, tiers

    core, full = tiers.split(golden, full_to, url)
    large = f" (more than {_size(tiers.CORE_LIMIT)})" if core > tiers.CORE_LIMIT else ""
    say(f"{golden}: core {_size(core)}{large}, full {_size(full)} at {stores.shown(full_to)}")


@app.command()
def fetch(
    golden: Place, url: Annotated[str | None, typer.Option(help="Where to look instead of the manifest's URL.")] = None
) -> None:
    """Bring the full tier beside the core; every file is checked by size and sha256 before it gets its name."""
    from pytest_fvparity.golden import tiers

    fetched = tiers.fetch(golden, url)
    say(*(f"{file}: {_size(file.stat().st_size)}, sha256 as recorded" for file in fetched))
    if not fetched:
        say(f"{golden}: all of it is here")


@app.command()
def export(
    golden: Place, to: Annotated[Path, typer.Option(help="Folder for <dataset>/<fixed_trials_id>/...: results.")]
) -> None:
    """Write a golden's numbers as the reference's own result files."""
    from pytest_fvparity.golden import layout

    say(*map(str, layout.export(golden, to)))


@app.command("import")
def import_golden(
    folder: Annotated[Path, typer.Argument(help="results/<dataset>/<fixed_trials_id> of a run of the reference.")],
    model: Annotated[str, typer.Option(help="The model it ran: shipped, a directory, or a cached hub id.")],
    trials: Annotated[Path, typer.Option(help="The fixed-trials file it ran on.")],
    edit_layer: Annotated[int, typer.Option(help="Block whose output was injected into.")],
    top_heads: Annotated[int, typer.Option(help="Number of top heads.")] = 10,
    token_class: Annotated[int, typer.Option(help="Token class of the effect; -1 is the last token.")] = -1,
    reference_profile: Annotated[str, typer.Option(help="src or todd_upstream.")] = "src",
    dtype: Annotated[str, typer.Option(help="What it was loaded in: fp32, fp16 or bf16.")] = "fp32",
    root: Annotated[Path, typer.Option(help="Folder of goldens.")] = Path("golden"),
) -> None:
    """Make a golden of the reference's own result files. A run against it is PARTIAL at best: it knows no prompts."""
    from fvcore.model import model as models
    from fvcore.pipeline import Settings
    from fvcore.trials.fixed import read
    from pytest_fvparity.golden.golden import Golden
    from pytest_fvparity.golden.layout import import_results

    settings = Settings(edit_layer, top_heads, token_class, reference_profile=reference_profile)
    path = import_results(folder, models.load(model, dtype=dtype), read(trials), settings, root)
    incomplete = ", ".join(Golden.open(path).part.incomplete)
    say(f"{path}: not every leaf is known of {incomplete}; a run against it is PARTIAL at best")


def say(*lines: str) -> None:
    exits.tell(*lines)


def _size(n_bytes: int) -> str:
    return f"{n_bytes / 2**20:.1f} MiB" if n_bytes >= 2**20 else f"{n_bytes / 2**10:.0f} KiB"
