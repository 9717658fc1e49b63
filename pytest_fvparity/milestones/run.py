"""One milestone after the other: what each needs, what it delivers, and what is written down of it.

Beside the deliverables a file tells how each ended, and with it what others may build on.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fvcore.compare import changes
from fvcore.formats import FormatError, read_json, sha256_file, validated, write_json
from fvcore.gates import StageError
from fvcore.model.spec import ModelError
from fvcore.profile import Strict
from fvcore.provenance import now
from pytest_fvparity.milestones import (
    m0_trials,
    m1_golden,
    m2_parity,
    m3_reference,
    m4_runtime,
    m5_diff,
    m6_again,
    m7_transfer,
)
from pytest_fvparity.milestones.setup import Failed, MilestoneOutcome, Setup

MODULES = (m0_trials, m1_golden, m2_parity, m3_reference, m4_runtime, m5_diff, m6_again, m7_transfer)
RUNS: dict[str, Callable[[Setup], MilestoneOutcome]] = {f"M{n}": module.run for n, module in enumerate(MODULES)}
NEEDS = {"M3": "M2", "M4": "M2", "M7": "M2"}
"""A failing M2 stops what builds on it; M5 and M6 are there for that case."""


BEFORE_PARITY = {"M0", "M1"}
"""Where one of these fails, M2 was not run."""


class NotReady(FormatError):
    """A milestone was asked for before the one it builds on passed."""


class Ended(Strict):
    """How a milestone ended, on which settings, and the digests of what it delivered."""

    passed: bool
    message: str
    settings: dict[str, Any]
    files: dict[str, str]  # path under the root -> sha256
    ended_at: str


def ended_in(path: Path) -> dict[str, Ended]:
    if not path.is_file():
        return {}
    what = "a record of milestones; remove it and run them again from M0"
    return validated(dict[str, Ended], read_json(path), path, what)


def _write(setup: Setup, outcomes: Mapping[str, MilestoneOutcome], settings: dict[str, Any]) -> None:
    known = ended_in(setup.layout.state)
    for name, outcome in outcomes.items():
        files = {file.relative_to(setup.root).as_posix(): sha256_file(file) for file in sorted(set(outcome.files))}
        told = vars(outcome) | {"settings": settings, "files": files, "ended_at": now()}
        known[name] = Ended.model_validate(told)
    write_json(setup.layout.state, {name: known[name].model_dump(mode="json") for name in sorted(known)})


def _require(setup: Setup, milestone: str, needed: str, settings: Mapping[str, Any]) -> None:
    """Raises NotReady where `needed` did not pass on these settings, or its files changed."""
    if (ended := ended_in(setup.layout.state).get(needed)) is None:
        raise NotReady(f"{milestone} builds on {needed}, which was not run here: fvparity milestone {needed.lower()}")
    if not ended.passed:
        raise NotReady(f"{milestone} builds on {needed}, which failed ({ended.message}): mend that first")
    if different := changes(ended.settings, settings):
        said = "; ".join(f"{name}: {there} there, {here} here" for name, (there, here) in different.items())
        raise NotReady(f"{milestone} builds on {needed}, which ran on other settings ({said})")
    files = {name: setup.file(name) for name in ended.files}
    changed = [name for name, file in files.items() if not (file.is_file() and sha256_file(file) == ended.files[name])]
    if changed:
        raise NotReady(f"{milestone} builds on {needed}, and {changed[0]} is not what it wrote: run {needed} again")


def _require_own_folder(setup: Setup, settings: Mapping[str, Any]) -> None:
    """Raises NotReady where another model's milestones lie: they would be written over."""
    for ended in ended_in(setup.layout.state).values():
        there = {**settings, **ended.settings}
        if there["model"] != setup.model and there["weights_sha"] != settings["weights_sha"]:
            raise NotReady(
                f"{setup.layout.runs} holds the milestones of {there['model']}, another model: "
                f"give those of {setup.model} a root of their own (--out FOLDER)"
            )


def run(milestone: str, setup: Setup) -> MilestoneOutcome:
    """Run one and write down how it ended. Raises NotReady where what it needs did not pass."""
    setup.fixed  # noqa: B018  (the lock comes before anything is written)
    settings: dict[str, Any] = {}
    try:
        settings = setup.settings
        _require_own_folder(setup, settings)
        if needed := NEEDS.get(milestone):
            _require(setup, milestone, needed, settings)
        outcome = RUNS[milestone](setup)
    except (Failed, ModelError, StageError) as failure:
        outcome = MilestoneOutcome(False, str(failure), [])
    ended = {milestone: outcome}
    if milestone == "M6" and outcome.passed:
        # Its second run is a suite like M2's, under M2's names: what builds on M2 builds on that.
        ended["M2"] = replace(outcome, files=outcome.files[1:])  # all but its own record
    _write(setup, ended, settings)
    return outcome


def run_all(milestones: Sequence[str], setup: Setup) -> Iterator[tuple[str, MilestoneOutcome]]:
    """In order; behind a failing M2 or M3 only M5 runs, which says where the difference is. Behind any other there is
    nothing for it to read, or what an earlier call left."""
    failed = ""
    for milestone in milestones:
        if failed and (milestone != "M5" or failed in BEFORE_PARITY):
            continue
        try:
            outcome = run(milestone, setup)
        except FormatError as refusal:
            outcome = MilestoneOutcome(False, str(refusal), [])
        failed = failed or ("" if outcome.passed else milestone)
        yield milestone, outcome
