"""Steps brought to their end in a run's folder, each done once, with a gate before each.

What a step depends on is recorded before it computes. A step that is killed goes on where it stands. One whose settings, or
whose inputs, are others now is begun anew where it is made in one go, and refused where it is gone on with unit by unit:
those may be hours of work, and are taken away only if that is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

from fvcore.experiments.errors import OtherSettings, StepError
from fvcore.experiments.folder import Folder, differences, locked, refuse_others
from fvcore.experiments.progress import Progressing
from fvcore.experiments.record import Record, Stage
from fvcore.experiments.sae.audit import Policy
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.steps import STEPS, Step, within

RECORD = "pathways_record.json"
OUT = "--paths-out"
"""How the commands are told where a run's folder is."""


@dataclass(frozen=True, slots=True)
class Asked:
    """resume: what is done stays done, what is half done is gone on with
    force: closed gates are passed, which is recorded, and results of other settings are taken away
    policy: of the audit     limit: targets of the discovery
    """

    resume: bool = True
    force: bool = False
    policy: Policy = "default"
    limit: int | None = None

    def deciding(self, step: Step) -> dict[str, Any]:
        """What of it a step's results depend on."""
        asked: dict[str, dict[str, Any]] = {"audit": {"policy": self.policy}, "discover": {"limit": self.limit}}
        return asked.get(step.name, {})


def _nobody(each: str) -> None:
    """Who is told of each file, or layer, that a step comes to."""


def run(
    settings: PathwaysConfig, steps: Sequence[Step], asked: Asked, shown: Callable[[str], Progressing | None] = _nobody
) -> Iterator[tuple[Step, list[Path]]]:
    """Bring the steps to their end, in order; yields each with its files as it ends, whether it passed or not.

    Raises StepError where a gate is closed or a step did not pass, and OtherSettings where there are units of other
    settings, unless forced.
    """
    folder = Folder(settings.paths.out)
    with locked(folder.root, OUT):
        folder.remove_unfinished()
        _require_ours(folder)
        for step in steps:
            doing = _Doing(step, settings, folder, asked)
            yield step, doing.do(shown(step.each))
            doing.passes(step.passed)


def _require_ours(folder: Folder) -> None:
    """Units that no record speaks of: whose they are is not known."""
    there = [name for step in STEPS for unit in step.units for name in folder.names(unit)]
    if there and not (folder / RECORD).is_file():
        raise OtherSettings(f"{folder / there[0]} is there, and no {RECORD}: use another {OUT}, or remove the folder")


@dataclass(frozen=True, slots=True)
class _Doing:
    """A step in its folder."""

    step: Step
    settings: PathwaysConfig
    folder: Folder
    asked: Asked

    def do(self, progress: Progressing | None) -> list[Path]:
        record, name = Record(self.folder, RECORD, OUT), self.step.name
        closed = self.passes(self.step.gate)
        depends = depends_on(self.step, self.settings, self.folder, self.asked) | closed
        self._make_room(record, depends)
        more: dict[str, dict[str, Any]] = {"load": {"forced": bool(closed)}, "discover": {"limit": self.asked.limit}}
        stage = Stage(name, depends, (), lambda _: WORK.get(name, _step)(self, progress, more.get(name, {})))
        if not record.is_done(stage):
            record.begin([stage])
            record.finish(stage, stage.work(lambda layer, n_rows: None))
        elif progress:
            progress.already(name)
        return [self.folder / file for file in record.read().stages[name].writes]

    def passes(self, gate: Any) -> dict[str, str]:
        """Empty where the gate is open; why it is closed, where it is forced."""
        try:
            gate(self.settings, self.folder)
        except StepError as error:
            if not self.asked.force:
                raise
            return {"forced": str(error)}
        return {}

    def _make_room(self, record: Record, depends: dict[str, Any]) -> None:
        """Take away what is of other settings or not wanted, and refuse to where it took long.

        Where only verdicts depend on what differs, that is what follows from them.
        """
        before = record.read().stages.get(self.step.name)
        if before is None or (depends == before.settings and self.asked.resume):
            return
        sides = (before.settings, depends)
        # What differs, but for settings that verdicts alone depend on.
        other = differences(*({key: of[key] for key in of if not within(key, self.step.judging)} for of in sides))
        if other and self.step.units and self.asked.resume and not self.asked.force:
            refuse_others(self.folder.root, [f"{what} ({self.step.name})" for what in other], f"{OUT}, give --force")
        globs = self.step.leaves if other or not self.asked.resume else self.step.judged
        for path in {path for glob in globs for path in self.folder.root.glob(glob) if path.is_file()}:
            path.unlink()
        record.forget(self.step.name)


def depends_on(step: Step, settings: PathwaysConfig, folder: Folder, asked: Asked) -> dict[str, Any]:
    """All that a step's results depend on, by name."""
    return step.depends_on(settings, folder) | asked.deciding(step)


Work: TypeAlias = Callable[[_Doing, Progressing | None, dict[str, Any]], list[Path]]


def _audit(doing: _Doing, progress: Progressing | None, more: dict[str, Any]) -> list[Path]:
    from fvcore.experiments.sae import audit

    return [audit.write(doing.settings, audit.audit(doing.settings, doing.asked.policy, progress))]


def _step(doing: _Doing, progress: Progressing | None, more: dict[str, Any]) -> list[Path]:
    """A step is the function of its name in the module of its name."""
    name = doing.step.name
    work = getattr(import_module(f"{__package__}.{name}"), name)
    return list(work(doing.settings, progress=progress, **more))


def _integrate(doing: _Doing, progress: Progressing | None, more: dict[str, Any]) -> list[Path]:
    from fvcore.experiments.sae import report

    return _step(doing, progress, more) + report.write(doing.folder.root, doing.settings.integrate.report)


WORK: dict[str, Work] = {"audit": _audit, "integrate": _integrate}
