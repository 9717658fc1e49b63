"""`fvparity replay`: the failure in a file, judged again here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fvcore import exits
from fvcore.gates import Status
from pytest_fvparity.candidates.conversation import CandidateError

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from pytest_fvparity.bundle.bundle import Bundle
    from pytest_fvparity.parity.implementation import Implementation


def replay(
    bundle: Annotated[Path, typer.Argument(help="File that `pytest -m parity --fv-bundle DIR` wrote.")],
    candidate: Annotated[
        str | None, typer.Option(help="Another candidate, package.module:factory (default: what the file's own said).")
    ] = None,
    candidate_dir: Annotated[
        Path | None, typer.Option(help="Folder of artifacts another candidate has computed.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Shipped model, directory or cached hub id: the run's, for --candidate.")
    ] = None,
) -> None:
    """Judge a failure again from its file. Status 0 if the candidate given agrees now, 1 if the failure is there, 3 if that
    cannot be judged."""
    from pytest_fvparity.bundle.bundle import read
    from pytest_fvparity.bundle.replay import replayed, status_of, told

    if candidate and candidate_dir:
        raise CandidateError("--candidate runs a candidate and --candidate-dir reads one: give one of them")
    kept = read(bundle)
    lm = _model(model, kept) if model else None
    other = _candidate(candidate, candidate_dir, lm, kept)
    result = replayed(kept, other, lm)
    exits.tell(*told(kept, result, other is not None))
    if result.status is Status.ERROR and candidate and not model:
        exits.tell("the candidate was given no model; if it needs one: --model")
    raise typer.Exit(status_of(kept, result, other is not None))


def _model(name: str, bundle: Bundle) -> LanguageModel:
    from fvcore.model import model as models
    from pytest_fvparity.bundle.replay import require_same

    identity = bundle.profile.identity
    lm = models.load(name, dtype=identity.dtype, quant=identity.quant)
    require_same(lm, bundle)
    return lm


def _candidate(
    name: str | None, folder: Path | None, lm: LanguageModel | None, bundle: Bundle
) -> Implementation | None:
    from pytest_fvparity.bundle.replay import settings_of
    from pytest_fvparity.candidates.candidates import FromFolder, from_factory

    if folder:
        return FromFolder(folder)
    if name is None:
        return None
    without: Any = lm  # None where no model is given: a factory may do without
    try:
        return from_factory(name, Path.cwd(), without, bundle.fixed_trials, settings_of(bundle))
    except (AttributeError, TypeError) as error:
        if lm is not None:
            raise
        raise CandidateError(f"--candidate {name} cannot be made without a model ({error}); give --model") from error
