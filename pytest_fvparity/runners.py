"""What a CI runner shows of a session without a further step: GitHub's annotations and step summary, GitLab's code quality.

GitHub shows ten annotations a step and drops the rest in silence, and drops a summary over 1 MiB as a whole. What was told
once is marked in the runner's folder of the job, so that a later step that prints it by hand does not say it again.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore import escapes
from fvcore.formats import digest, write_json, write_text
from pytest_fvparity.report.markdown import LEAST, STEP_SUMMARY, cut, size

MOST = 10
LONGEST = 4000  # characters of a message
CODE_QUALITY = "gl-code-quality-report.json"
SEVERITIES = {"error": "major", "warning": "minor"}


@dataclass(frozen=True)
class Annotation:
    """One thing to look at. `kind` is error or warning; `file` is absolute, `line` counts from 1."""

    kind: str
    title: str
    message: str
    file: Path | None = None
    line: int | None = None

    @property
    def said(self) -> list[str]:
        return [self.kind, self.title, self.message]

    @property
    def place(self) -> str | None:
        """The file as the runner knows it; None outside of what it checked out."""
        root = os.environ.get("GITHUB_WORKSPACE") or os.environ.get("CI_PROJECT_DIR") or "."
        try:
            return self.file.resolve().relative_to(Path(root).resolve()).as_posix() if self.file else None
        except (OSError, RuntimeError, ValueError):  # also what no system has as a path
            return None


def on_github() -> bool:
    return os.environ.get("GITHUB_ACTIONS") == "true"


def told(annotations: Sequence[Annotation]) -> list[str]:
    """The commands that say these; they count as said."""
    for one in annotations:
        mark_told(one.said)
    return workflow_commands(annotations)


def workflow_commands(annotations: Sequence[Annotation]) -> list[str]:
    """GitHub's, in the order given; where they are too many the last counts those that have no place."""
    if len(annotations) <= MOST:
        return list(map(_command, annotations))
    rest = annotations[MOST - 1 :]
    more = Annotation(rest[0].kind, f"{len(rest)} more", "\n".join(one.title for one in rest))
    return [*map(_command, annotations[: MOST - 1]), _command(more)]


def _command(one: Annotation) -> str:
    place = one.place
    properties = {"file": place, "line": one.line and place and str(one.line), "title": one.title}
    texts = {name: _data(value) for name, value in properties.items() if value}
    given = ",".join(f"{name}={text.replace(':', '%3A').replace(',', '%2C')}" for name, text in texts.items())
    written = f"\nwritten at {one.file}:{one.line}" if one.line and not place else ""
    return f"::{one.kind} {given}::{_data(cut(one.message + written, LONGEST))}"


def _data(text: str) -> str:
    return escapes.lines(text).replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def summarise(markdown: Callable[[int], str]) -> None:
    """Append to GitHub's step summary, if there is one, what `markdown` makes of the bytes that are left of it."""
    if not (name := os.environ.get("GITHUB_STEP_SUMMARY")):
        return
    with Path(name).open("ab") as file:  # the step's own commands append to it too: it is never replaced
        used = file.seek(0, os.SEEK_END)
        room = STEP_SUMMARY - used - 4
        text = markdown(room) if room >= LEAST else ""
        if text and size(text) <= room:
            start = "\n\n" if used else ""
            file.write(f"{start}{text.rstrip()}\n".encode(errors="backslashreplace"))


def prints_to_summary() -> bool:
    """Whether what this process prints is appended to the step's summary."""
    summary = os.environ.get("GITHUB_STEP_SUMMARY", "")
    try:
        return os.path.samestat(os.fstat(1), Path(summary).stat())
    except OSError:
        return False


def write_code_quality(annotations: Sequence[Annotation], folder: Path) -> None:
    """GitLab's, in GitLab: a merge request shows it at its lines. What has no file of the project has no place there."""
    if os.environ.get("GITLAB_CI"):
        rows = [_issue(one, place) for one in annotations if (place := one.place)]
        write_json(folder / CODE_QUALITY, rows)


def _issue(one: Annotation, place: str) -> dict[str, Any]:
    return {
        "description": escapes.line(f"{one.title}: {one.message}"),
        "check_name": "fvparity",
        "fingerprint": digest([one.title, place]),
        "severity": SEVERITIES[one.kind],
        "location": {"path": place, "lines": {"begin": one.line or 1}},
    }


def mark_told(what: object) -> None:
    """This job's runner has shown it."""
    if (mark := _mark(what)) and on_github():
        write_text(mark, "")


def is_told(what: object) -> bool:
    return on_github() and (mark := _mark(what)) is not None and mark.is_file()


def _mark(what: object) -> Path | None:
    """The runner empties this folder at the start and at the end of a job."""
    temporary = os.environ.get("RUNNER_TEMP")
    return Path(temporary, "fvparity-told", digest(what)) if temporary else None
