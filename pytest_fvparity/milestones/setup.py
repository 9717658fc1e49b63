"""What the milestones of one plan run on, and how they start pytest."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fvcore.formats import FormatError, sha256_file
from fvcore.trials import FixedTrials
from fvcore.trials import read as read_trials
from pytest_fvparity.golden.golden import Golden, NoGolden, locate, relative_path, search_roots
from pytest_fvparity.milestones.layout import Layout
from pytest_fvparity.milestones.lock import Lock
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.render import REPORT, read_report
from pytest_fvparity.report.report import Report
from pytest_fvparity.shipped import root as shipped_root


class Failed(FormatError):
    """A milestone did not reach its criterion; the message says which part."""


@dataclass(frozen=True)
class Setup:
    """Options of a milestone, as given; what was not given is the lock's or the golden's."""

    model: str
    trials: Path
    lock: Lock
    root: Path
    layout_kind: str = "own"
    dataset_json: Path | None = None
    src: Path | None = None
    src_python: str | None = None
    golden: Path | None = None
    reference_profile: str = "src"
    edit_layer: int | None = None
    n_top_heads: int | None = None
    token_class_idx: int | None = None
    max_trials: int | None = None
    device: str = "cpu"
    dtype: str = "fp32"
    spec: str | None = None
    quant: str = "none"
    n_eval: int = 50
    topk: int = 20
    relation_root: Path | None = None  # M7's alone
    more: tuple[str, ...] = ()  # options for pytest, as they are

    @cached_property
    def fixed(self) -> FixedTrials:
        """The trials, once they are known to be of this plan."""
        fixed = read_trials(self.trials)
        self.lock.require(fixed.meta, len(fixed.trials), self.reference_profile)
        return fixed

    @cached_property
    def layout(self) -> Layout:
        return Layout(self.root, self.layout_kind, self.fixed.dataset, self.fixed.id)

    @property
    def settings(self) -> dict[str, Any]:
        """What two milestones must share to build on one another."""
        return {
            "profile": self.lock.name,
            "model": self.model,
            "trials_sha256": sha256_file(self.trials),
            "reference_profile": self.reference_profile,
            "edit_layer": self.chosen("edit_layer"),
            "n_top_heads": self.chosen("n_top_heads"),
            "token_class_idx": self.chosen("token_class_idx"),
            "dtype": self.dtype,
            "quant": self.quant,
        }

    def raw_dataset(self) -> Path:
        """What the trials were drawn from: as given, else where the file says, else as it ships."""
        named = self.dataset_json or Path(self.fixed.meta.dataset_json)
        places = [named, shipped_root() / named]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise Failed(f"the raw dataset {named} is not here: --dataset-json FILE")
        return found

    def chosen(self, name: str) -> int:
        """As given, else as the golden has it, else the lock's."""
        given: int | None = getattr(self, name)
        if given is not None:
            return given
        golden = self.find_golden()
        default: int = getattr(self.lock.defaults, name)
        return default if golden is None else int(getattr(golden.profile.identity, name))

    # ------------------------------------------------------------ goldens

    def find_golden(self) -> Golden | None:
        """The golden of these trials: M1's own, else the one `--golden` or the project names, else a shipped one."""
        roots = [self.layout.goldens, *search_roots(self.golden, Path.cwd(), shipped_root())]
        try:
            place = relative_path(self.fixed.dataset, self.fixed.id, self.reference_profile)
            return Golden.open(locate(dict.fromkeys(roots), place))
        except NoGolden:
            return None

    def require_golden(self) -> Golden:
        golden = self.find_golden()
        if golden is None:
            raise Failed(
                f"there is no golden of {self.fixed.id}: run M1 with --fv-src PATH, a checkout of the reference"
            )
        return golden

    # ------------------------------------------------------------ pytest

    def parity(self, report_dir: Path, options: Sequence[str], keys: Sequence[str] = CHECK_KEYS) -> Report:
        """Run the checks of some keys in a pytest of its own, from the current folder, and return its report.

        A conftest.py there, and with it the candidate, counts as in any run by hand.
        """
        words = [
            *(sys.executable, "-m", "pytest", "-m", "parity", "-q", "-p", "no:cacheprovider"),
            *([] if tuple(keys) == CHECK_KEYS else ["-k", " or ".join(keys)]),
            f"--fv-trials={self.trials}",
            f"--fv-report-dir={report_dir}",
            *options,
            *self.running,
        ]
        path = report_dir / self.fixed.dataset / self.fixed.id / f"{REPORT}.json"
        path.unlink(missing_ok=True)
        code = subprocess.run(words, check=False).returncode
        if not path.is_file():
            raise Failed(f"pytest ended with status {code} and wrote no report; what it printed says why")
        return read_report(path)

    @property
    def running(self) -> list[str]:
        """Options of every run, whatever it compares."""
        return [
            f"--fv-model={self.model}",
            f"--fv-reference-profile={self.reference_profile}",
            f"--fv-device={self.device}",
            f"--fv-dtype={self.dtype}",
            f"--fv-quant={self.quant}",
            *([f"--fv-spec={self.spec}"] if self.spec else []),
            *self.more,
        ]

    def comparing(self, n_trials: int | None = None) -> list[str]:
        """Options of a run against a golden; `n_trials` of them at the per-trial keys, or as many as was asked for."""
        golden = self.find_golden()
        given = {"edit-layer": self.edit_layer, "top-heads": self.n_top_heads, "token-class": self.token_class_idx}
        words = [f"--fv-{name}={value}" for name, value in given.items() if value is not None]
        n_trials = n_trials or self.max_trials or min(self.lock.defaults.max_trials, len(self.fixed.trials))
        return [*words, f"--fv-max-trials={n_trials}", *([f"--fv-golden={_root_of(golden)}"] if golden else [])]

    def recording(self) -> list[str]:
        """Options of a run of the reference."""
        if self.src is None:
            raise Failed("the reference has to run: --fv-src PATH, a checkout of it")
        names = {"edit-layer": "edit_layer", "top-heads": "n_top_heads", "token-class": "token_class_idx"}
        words = [f"--fv-{option}={self.chosen(name)}" for option, name in names.items()]
        python = [f"--fv-src-python={self.src_python}"] if self.src_python else []
        return [*words, f"--fv-src={self.src}", *python]


def _root_of(golden: Golden) -> Path:
    """golden/<dataset>/<trials>/<profile> -> golden"""
    return golden.path.parents[2]
