"""Checkpoint files reduced to their features. Each file holds all results so far, so a feature stands in many; the newest counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from math import isclose, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fvcore.experiments.sae.issues import Issues, place
from fvcore.experiments.sae.known import Known
from fvcore.experiments.sae.readers import Oddities, read_document
from fvcore.experiments.sae.schemas import Result
from fvcore.formats import FormatError, sentence

if TYPE_CHECKING:
    from fvcore.fast.chunks import Advance

SAME_D = 1e-6


@dataclass
class Kept:
    """A feature's result in its newest file. age: what makes a file newer     n_files: that hold the feature

    differs: whether another file says something else
    """

    result: Result
    age: tuple[str, int, str]
    n_files: int = 0
    differs: bool = False


@dataclass
class Checkpoints:
    """entries: results by feature, that of a causal one each     variants: files by the layout of their results"""

    issues: Issues
    oddities: Oddities
    best: dict[str, Kept] = field(default_factory=dict)
    causal_entries: Counter[str] = field(default_factory=Counter)
    variants: Counter[str] = field(default_factory=Counter)
    n_results: int = 0
    n_valid: int = 0
    failed: int = 0

    def read(self, files: Sequence[Path], advance: Advance) -> None:
        for number, path in enumerate(files, start=1):
            try:
                self._read_file(path)
            except FormatError as error:
                self.failed += 1
                self.issues.add("UNREADABLE_FILE", f"Failed to load {error}", file=path.name)
            finally:
                advance(number, 1)

    def _read_file(self, path: Path) -> None:
        document = read_document(path, self.oddities)
        results = document.get("results") if isinstance(document, dict) else None
        if not isinstance(results, list):
            self.failed += 1
            self.issues.add(
                "BAD_TOPLEVEL", f"{path}: expected an object with a list of results, found none", file=path.name
            )
            return
        age = (str(document.get("timestamp", "")), path.stat().st_mtime_ns, path.name)
        seen: set[str] = set()
        variants: set[str] = set()
        for at, value in enumerate(results):
            self.n_results += 1
            if (result := self._result(value, path, at)) is not None:
                variants.add(result.variant)
                self._keep(result, age, seen, path)
        self.variants.update(variants)

    def _result(self, value: Any, path: Path, at: int) -> Result | None:
        """A valid one; what is not is an issue."""
        try:
            result = Result.model_validate(value)
        except ValidationError as error:
            name = str(value.get("feature", "unknown")) if isinstance(value, dict) else "unknown"
            missing = [str(row["loc"][0]) for row in error.errors() if row["type"] == "missing"]
            issue = partial(self.issues.add, feature=name, file=path.name, at=at)
            if missing:
                issue("MISSING_FIELD", f"Missing fields in {name}: {missing}")
            else:
                issue("BAD_TYPE", f"{path.name}, result {at}, {name}: {sentence(error)}")
            return None
        if (result.layer, result.feature_id) != place(result.feature) and not self.issues.plan:
            said = f"{path.name}, result {at}: {result.feature} is said to be feature {result.feature_id} of layer {result.layer}"
            self.issues.add("FEATURE_ID_MISMATCH", said, result.feature, file=path.name, at=at)
            return None
        return result

    def _keep(self, result: Result, age: tuple[str, int, str], seen: set[str], path: Path) -> None:
        name = result.feature
        self.n_valid += 1
        self.causal_entries[name] += result.is_causal
        if name in seen:
            self.issues.add("DUP_RESULT", f"{name} stands twice in {path.name}", name, file=path.name)
        kept = self.best.setdefault(name, Kept(result, age))
        kept.n_files += name not in seen
        seen.add(name)
        kept.differs = kept.differs or _differ(kept.result, result)
        if age >= kept.age:
            kept.result, kept.age = result, age

    def check(self, known: Known) -> None:
        """What is odd about features, once every file was read."""
        for name, kept in self.best.items():
            if not self.issues.plan and (wrong := known.wrong(kept.result.layer, kept.result.feature_id)):
                self.issues.add("FEATURE_ID_MISMATCH", f"{name}: {wrong}", name)
            if not isfinite(kept.result.cohen_d):
                self.issues.add("NONFINITE_D", f"{name}: Cohen's d is {kept.result.cohen_d}", name)
            if kept.differs:
                said = (
                    f"{name}: checkpoints differ in cohen_d or is_causal; what {kept.age[2]} says, the newest, counts"
                )
                self.issues.add("CONFLICTING_RESULT", said, name)

    def causal(self) -> list[str]:
        """Names of causal features, by layer and id."""
        return sorted((name for name, kept in self.best.items() if kept.result.is_causal), key=place)


def _differ(one: Result, other: Result) -> bool:
    both_odd = not isfinite(one.cohen_d) and not isfinite(other.cohen_d)
    same = both_odd or isclose(one.cohen_d, other.cohen_d, rel_tol=0, abs_tol=SAME_D)
    return not same or one.is_causal != other.is_causal
