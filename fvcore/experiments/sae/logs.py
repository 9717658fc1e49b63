"""Response logs reduced to their cells: how many trials a feature has under a condition, and which of them stand twice."""

from __future__ import annotations

import zlib
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError

from fvcore.experiments.sae.issues import Issues, Stopped
from fvcore.experiments.sae.readers import KEYS, MISSING, BadTopLevel, Oddities, Record, is_lone, read_records
from fvcore.experiments.sae.schemas import MAX_TRIAL, Code, ResponseRecord
from fvcore.formats import FormatError, sentence

if TYPE_CHECKING:
    from fvcore.fast.chunks import Advance


class Cell:
    """Records of a feature under a condition. texts: by trial, a checksum of the response, 0 where there is none"""

    __slots__ = ("again", "n", "other_text", "texts")

    def __init__(self) -> None:
        self.n, self.again, self.other_text = 0, 0, 0
        self.texts = array("I")

    @property
    def trials(self) -> int:
        """Distinct ones; a record without a number is one of its own."""
        return self.n - self.again

    def note(self, trial: int, text: int) -> None:
        if len(self.texts) <= trial:
            self.texts.extend([0] * (trial + 1 - len(self.texts)))
        if before := self.texts[trial]:
            self.again += 1
            self.other_text += before != text
        else:
            self.texts[trial] = text

    def merge(self, other: Cell) -> None:
        again, other_text = self.again + other.again, self.other_text + other.other_text
        self.again = self.other_text = 0
        for trial, text in enumerate(other.texts):
            if text:
                self.note(trial, text)
        self.n, self.again, self.other_text = self.n + other.n, self.again + again, self.other_text + other_text


Cells: TypeAlias = dict[str, dict[str, Cell]]
"""Feature -> condition -> cell."""


@dataclass
class Log:
    """What one file, or all of them, hold. `unreadable` ends a file, `stopped` the audit."""

    issues: Issues
    oddities: Oddities = field(default_factory=Oddities)
    cells: Cells = field(default_factory=dict)
    n_records: int = 0
    failed: int = 0
    stopped: bool = False

    def merge(self, other: Log) -> None:
        for feature, cells in other.cells.items():
            mine = self.cells.setdefault(feature, cells)
            if mine is not cells:
                for condition, cell in cells.items():
                    if (own := mine.setdefault(condition, cell)) is not cell:
                        own.merge(cell)
        self.issues.merge(other.issues)
        self.oddities.nan += other.oddities.nan
        self.oddities.lone_surrogates += other.oddities.lone_surrogates
        self.n_records += other.n_records
        self.failed += other.failed
        self.stopped = other.stopped


def scan_file(path: Path, listed: int, plan: bool) -> Log:
    """One file; never raises for what it holds. plan: by the plan's policy, which stops at the first error."""
    log = Log(Issues(listed, plan))
    try:
        try:
            _scan(path, log)
        except (FormatError, BadTopLevel) as error:
            log.failed = 1
            code: Code = "BAD_TOPLEVEL" if isinstance(error, BadTopLevel) else "UNREADABLE_FILE"
            log.issues.add(code, f"Failed to load {error}", file=path.name)
    except Stopped:
        log.stopped = True
    return log


def _scan(path: Path, log: Log) -> None:
    """The hot loop: a million records a second pass here, so what is right takes the shortest way."""
    cells, crc32 = log.cells, zlib.crc32
    for feature, condition, trial, response in read_records(path, log.oddities):
        log.n_records += 1
        try:
            cell = cells[feature][condition]
            text = crc32(response.encode("utf-8", "surrogatepass")) or 1
            if trial.__class__ is not int or not 0 <= trial <= MAX_TRIAL or not response or response.isspace():
                raise LookupError
        except (LookupError, TypeError, AttributeError):
            if not _careful(path, (feature, condition, trial, response), log):
                continue
            cell = cells.setdefault(feature, {}).setdefault(condition, Cell())
            text = crc32(response.encode("utf-8", "surrogatepass")) or 1
        cell.n += 1
        if trial.__class__ is int:
            cell.note(trial, text)


def _careful(path: Path, record: Record, log: Log) -> bool:
    """Whether the record counts as a trial; what is wrong with it is an issue."""
    given = {key: value for key, value in zip(KEYS, record, strict=True) if value is not MISSING}
    name, at = record[0] if isinstance(record[0], str) else "unknown", log.n_records
    issue = partial(log.issues.add, feature=name, file=path.name, at=at)
    if "feature" not in given:
        issue("MISSING_FEATURE", f"Response missing 'feature' field in {path}, record {at}")
        return False
    if "condition" not in given:
        issue("MISSING_CONDITION", f"Response missing 'condition' field in {path}, record {at}")
        return False
    response = given.setdefault("response", "")
    lone = isinstance(response, str) and is_lone(response)  # which pydantic takes for no text
    try:
        ResponseRecord.model_validate(given | ({"response": "half"} if lone else {}))
    except ValidationError as error:
        issue("BAD_TYPE", f"{path.name}, record {at}, {name}: {sentence(error)}")
        return False
    if not response or (response.isspace() and not log.issues.plan):  # the plan takes a blank for a text
        said = f"Response missing text payload: {name} ({path.name}, record {at})"
        issue("EMPTY_RESPONSE", said, condition=record[1])
    return record[-1] is not MISSING


def scan(files: Sequence[Path], listed: int, plan: bool, workers: int, advance: Advance) -> Log:
    """All files, merged in their order, whoever read them."""
    whole = Log(Issues(listed))
    for number, log in enumerate(_logs(files, partial(scan_file, listed=listed, plan=plan), workers), start=1):
        whole.merge(log)
        advance(number, 1)
        if whole.stopped:
            break
    return whole


def _logs(files: Sequence[Path], read: partial[Log], workers: int) -> Iterator[Log]:
    if workers == 1:
        yield from map(read, files)
        return
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"))
    try:
        yield from pool.map(read, files)
    finally:
        pool.shutdown(cancel_futures=True)


def canonical(cells: Cells, aliases: dict[str, str]) -> tuple[Cells, Counter[str]]:
    """Cells by the expected names of conditions, and how many records bore another name."""
    found: Cells = {}
    seen: Counter[str] = Counter()
    for feature, by_condition in cells.items():
        own = found.setdefault(feature, {})
        for condition, cell in by_condition.items():
            if condition in aliases:
                seen[condition] += cell.n
            name = aliases.get(condition, condition)
            if (mine := own.setdefault(name, cell)) is not cell:
                mine.merge(cell)
    return found, seen
