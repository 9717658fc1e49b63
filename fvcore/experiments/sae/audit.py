"""Step 0: every checkpoint and every log read to its end, and what they say held against each other.

Memory goes with the number of features. By the plan's own policy, `v4`, the first error ends it, an empty response is one,
conditions have no aliases, and what stands twice counts twice.
"""

import glob
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Literal, TypeAlias

from fvcore.experiments.folder import Folder
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.sae.checkpoints import Checkpoints
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.issues import Issues, Stopped, place, severity_of
from fvcore.experiments.sae.known import Known
from fvcore.experiments.sae.logs import Cell, Cells, Log, canonical, scan
from fvcore.experiments.sae.readers import Oddities, is_read
from fvcore.experiments.sae.schemas import IssueGroup, PlanResults, Validation
from fvcore.formats import sha256
from fvcore.provenance import peak_rss

Policy: TypeAlias = Literal["default", "v4"]
VALIDATION = "results/audit/data_validation.json"
LOADING, VALIDATING = "Loading checkpoints", "Validating response logs"
"""The plan's words on its progress bars."""


def files_of(globs: Sequence[str]) -> list[Path]:
    """Sorted, each once, whatever a folder lists first."""
    found = {Path(name) for pattern in globs for name in glob.glob(pattern, recursive=True)}  # noqa: PTH207  absolute ones
    return sorted(path for path in found if path.is_file())


def fingerprint(settings: PathwaysConfig) -> str:
    """Of names, sizes and times of the files: whether they are those that an audit has read."""
    files = files_of((*settings.paths.checkpoints, *settings.paths.response_logs))
    told = [(path.as_posix(), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return f"sha256:{sha256(json.dumps(told).encode())}"


def audit(settings: PathwaysConfig, policy: Policy = "default", progress: Progressing | None = None) -> Validation:
    """Read everything and say what is wrong; never raises for what a file holds."""
    started, watched = time.perf_counter(), Watched(progress)
    run = _Audit(settings, policy)
    try:
        run.read_checkpoints(watched)
        run.read_logs(watched)
        run.cross_check()
    except Stopped:
        pass
    return run.validation(time.perf_counter() - started)


def write(settings: PathwaysConfig, validation: Validation) -> Path:
    (path,) = Folder(settings.paths.out).write({VALIDATION: validation.model_dump(mode="json")})
    return path


@dataclass(frozen=True)
class _Join:
    causal: list[str]
    missing: list[str]

    @property
    def percent(self) -> float:
        return 100 * (len(self.causal) - len(self.missing)) / len(self.causal) if self.causal else 0.0


class _Audit:
    def __init__(self, settings: PathwaysConfig, policy: Policy) -> None:
        self.settings, self.policy, self.plan = settings, policy, policy == "v4"
        self.issues = Issues(settings.audit.max_listed, self.plan)
        self.fingerprint = fingerprint(settings)
        self.checkpoints = Checkpoints(self.issues, Oddities())
        self.checkpoint_files = self._files(settings.paths.checkpoints)
        self.log_files = self._files(settings.paths.response_logs)
        self.log, self.aliases_seen = Log(self.issues), Counter[str]()
        self.cells: Cells = {}

    def _files(self, globs: Sequence[str]) -> list[Path]:
        files = files_of(globs)
        for path in files:
            if not is_read(path):
                self.issues.add("EXTRA_FILE", f"{path}: neither JSON nor Parquet, and not read", file=path.name)
        return [path for path in files if is_read(path)]

    def read_checkpoints(self, watched: Watched) -> None:
        if not self.checkpoint_files:
            self._none("NO_CHECKPOINTS", "No checkpoint files found", self.settings.paths.checkpoints)
        with watched.running(LOADING, len(self.checkpoint_files)) as advance:
            self.checkpoints.read(self.checkpoint_files, advance)
        self.checkpoints.check(Known(self.settings))

    def _none(self, code: Literal["NO_CHECKPOINTS", "NO_RESPONSE_LOGS"], said: str, globs: Sequence[str]) -> None:
        self.issues.add(code, said if self.plan else f"{said} (no file is {' or '.join(globs)})")

    def read_logs(self, watched: Watched) -> None:
        if not self.log_files:
            self._none("NO_RESPONSE_LOGS", "No response log files found", self.settings.paths.response_logs)
        options = self.settings.audit
        with watched.running(VALIDATING, len(self.log_files)) as advance:
            self.log = scan(self.log_files, options.max_listed, self.plan, options.workers, advance)
        self.issues.merge(self.log.issues)
        aliases = {} if self.plan else self.settings.conditions.aliases
        self.cells, self.aliases_seen = canonical(self.log.cells, aliases)
        if self.log.stopped:
            raise Stopped

    def cross_check(self) -> None:
        for feature, by_condition in self.cells.items():
            if missing := [name for name in self.settings.conditions.expected if name not in by_condition]:
                self.issues.add("MISSING_CONDITIONS", f"{feature} missing conditions: {missing}", feature)
            for condition, cell in by_condition.items():
                # The plan asks enough trials of conditions that it does not know, too.
                counts = self.plan or condition in self.settings.conditions.expected
                if counts and (n := self._trials(feature, condition)) < self.settings.audit.min_trials:
                    said = (
                        f"{feature} {condition} has only {n} trials (expected ~{self.settings.audit.expected_trials})"
                    )
                    self.issues.add("LOW_TRIALS", said, feature, condition, n=n)
                if cell.again:
                    said = f"{feature} {condition}: {cell.again} records of trials that stand there already"
                    said += f", {cell.other_text} of them with another text"
                    self.issues.add("DUP_TRIAL", said, feature, condition, n=cell.again)
        self._check_names()
        self._check_join()

    def _trials(self, feature: str, condition: str) -> int:
        cell = self.cells[feature][condition]
        return cell.n if self.plan else cell.trials

    def _check_names(self) -> None:
        for name, n in self._unknown().items():
            said = f"{name}: a condition that is neither expected nor an alias, {n} records"
            self.issues.add("UNKNOWN_CONDITION", said, condition=name, n=n)
        for alias, n in self.aliases_seen.items():
            said = f"{alias} is read as {self.settings.conditions.aliases[alias]}, {n} records"
            self.issues.add("ALIAS_USED", said, condition=alias, n=n)

    def _unknown(self) -> dict[str, int]:
        totals = self._totals()
        return {name: n for name, n in totals.items() if name not in self.settings.conditions.expected}

    def _totals(self) -> dict[str, int]:
        totals: Counter[str] = Counter()
        for by_condition in self.cells.values():
            totals.update({name: cell.n for name, cell in by_condition.items()})
        return dict(sorted(totals.items()))

    def _check_join(self) -> None:
        join = self._join()
        if not join.causal and not self.plan:
            self.issues.add("NO_CAUSAL", "No causal feature in any checkpoint")
        elif round(join.percent / 100, 12) < self.settings.audit.min_join_rate:
            least = f"{100 * self.settings.audit.min_join_rate:g}"
            self.issues.add("LOW_JOIN_RATE", f"Low join rate: {join.percent:.1f}% (expected >{least}%)")

    def _join(self) -> _Join:
        """The plan takes a feature for causal that any file says so of."""
        every = sorted((name for name, n in self.checkpoints.causal_entries.items() if n), key=place)
        causal = every if self.plan else self.checkpoints.causal()
        return _Join(causal, [name for name in causal if name not in self.cells])

    def _by_layer(self, causal: Sequence[str]) -> dict[str, int]:
        layers: Counter[int] = Counter()
        for name in causal:
            layers[place(name)[0]] += self.checkpoints.causal_entries[name] if self.plan else 1
        return {str(layer): n for layer, n in sorted(layers.items())}

    def validation(self, seconds: float) -> Validation:
        severity = severity_of(
            self.settings.audit, self.issues, self.log.n_records, self.checkpoints.n_results, self.plan
        )
        groups = list(self.issues.groups(severity))
        join, validated = self._join(), not any(group.severity == "error" for group in groups)
        by_layer = self._by_layer(join.causal)
        most = self.settings.audit.max_listed
        return Validation(
            validated=validated,
            policy=self.policy,
            files=self._file_counts(),
            checkpoints=self._checkpoint_counts(),
            causal_by_layer=by_layer,
            total_causal_features=sum(by_layer.values()),
            total_trials=self.log.n_records,
            total_response_features=len(self.cells),
            joinable_features=len(join.causal) - len(join.missing),
            join_rate_percent=join.percent,
            missing_causal_features={"count": len(join.missing), "first": join.missing[:most]},
            conditions=self._condition_counts(),
            oddities={
                "nan": self.checkpoints.oddities.nan + self.log.oddities.nan,
                "lone_surrogates": self.log.oddities.lone_surrogates,
            },
            trials_per_cell=self._spread(),
            issues=groups,
            audit_results=PlanResults(
                errors=_messages(groups, "error"), warnings=_messages(groups, "warning"), validated=validated
            ),
            inputs_fingerprint=self.fingerprint,
            timing_s=round(seconds, 3),
            peak_rss_mb=round(peak_rss() / 1e6, 1),
        )

    def _file_counts(self) -> dict[str, int]:
        files = (*self.checkpoint_files, *self.log_files)
        return {
            "checkpoints": len(self.checkpoint_files),
            "checkpoints_failed": self.checkpoints.failed,
            "response_logs": len(self.log_files),
            "response_logs_failed": self.log.failed,
            "bytes": sum(path.stat().st_size for path in files),
        }

    def _checkpoint_counts(self) -> dict[str, int | dict[str, int]]:
        found = self.checkpoints
        return {
            "results_total": found.n_results,
            "unique_features": len(found.best),
            "duplicates": found.n_valid - len(found.best),
            "conflicts": sum(kept.differs for kept in found.best.values()),
            "schema_variants": dict(sorted(found.variants.items())),
            "nonfinite_cohen_d": sum(not isfinite(kept.result.cohen_d) for kept in found.best.values()),
        }

    def _condition_counts(self) -> dict[str, int | dict[str, int]]:
        counts = self.issues.counts
        return {
            "totals": self._totals(),
            "aliases_seen": dict(sorted(self.aliases_seen.items())),
            "unknown": self._unknown(),
            "features_missing_any": counts.get("MISSING_CONDITIONS", 0),
            "low_trial_cells": counts.get("LOW_TRIALS", 0),
            "duplicate_trials": sum(cell.again for cell in self._cells()),
            "duplicate_trials_of_other_text": sum(cell.other_text for cell in self._cells()),
        }

    def _spread(self) -> dict[str, int | None]:
        expected = self.settings.conditions.expected
        trials = sorted(self._trials(one, name) for one, of in self.cells.items() for name in of if name in expected)
        at = {"min": 0.0, "p05": 0.05, "median": 0.5, "max": 1.0}
        return {name: trials[int(share * (len(trials) - 1))] if trials else None for name, share in at.items()}

    def _cells(self) -> Iterator[Cell]:
        return (cell for by_condition in self.cells.values() for cell in by_condition.values())


def _messages(groups: Sequence[IssueGroup], severity: str) -> list[str]:
    return [row.message for group in groups if group.severity == severity for row in group.first]
