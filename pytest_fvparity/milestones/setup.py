"""What the milestones of one plan run on: the options of `fvparity milestone`, where files lie, how pytest is started."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fvcore import escapes, names, shipped
from fvcore.formats import FormatError, sha256_file
from fvcore.trials.fixed import FixedTrials
from fvcore.trials.fixed import read as read_trials
from pytest_fvparity.children import following
from pytest_fvparity.milestones.lock import Lock
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.parity.place import particular, under_of
from pytest_fvparity.report.render import REPORT, read_report
from pytest_fvparity.report.report import Report

if TYPE_CHECKING:
    from pytest_fvparity.golden.golden import Golden

# Options of a run that are the golden's, or else the lock's, where they are not given: field -> option.
CHOSEN = {"edit_layer": "edit-layer", "n_top_heads": "top-heads", "token_class_idx": "token-class"}
GOLDENS_OWN = typer.Option(help="Default: those of this model's golden, else the profile's.")


class Failed(FormatError):
    """A milestone did not reach its criterion; the message says which part."""


@dataclass(frozen=True)
class MilestoneOutcome:
    """How a milestone ended: whether its criterion is met, a sentence, and its deliverables."""

    passed: bool
    message: str
    files: list[Path]


@dataclass(frozen=True)
class Layout:
    """Where the files lie. `own`: in a folder of these trials. `plan`: in `results/` and `results_fv/`, as the plan has it."""

    runs: Path  # what our side writes: M0, M2, M4, M6, and what ended how
    results: Path  # what the reference's side writes, M1 and M3, in folders of the dataset and the trials
    reference: Path  # those folders
    diff: Path  # M5's report
    goldens: Path  # goldens that M1 records
    state: Path


@dataclass(frozen=True)
class Setup:
    """The options of a milestone, as given: the one table of them. What is not given is the lock's or the golden's."""

    model: Annotated[str, typer.Option(help="Shipped model, directory or cached hub id.")] = shipped.DEFAULT_MODEL
    trials: Annotated[Path | None, typer.Option(help="Fixed-trials file (default: the shipped model's).")] = None
    profile: Annotated[str, typer.Option(help="Lock profile: antonym-lock, or a YAML file.")] = "antonym-lock"
    layout_kind: Annotated[
        str,
        typer.Option("--layout", help="own: reports/milestones/<dataset>/<trials>. plan: results/ and results_fv/."),
    ] = "own"
    out: Annotated[
        Path | None, typer.Option(help="Root of the layout (default: reports; the current folder for plan).")
    ] = None
    dataset_json: Annotated[
        Path | None,
        typer.Option(help="Raw dataset, for M0 and for M4's sampled trials (default: what the file names)."),
    ] = None
    src: Annotated[
        Path | None, typer.Option("--fv-src", help="Checkout of the reference: M1 records it.", resolve_path=True)
    ] = None
    src_python: Annotated[str | None, typer.Option("--fv-src-python", help="Interpreter that runs the reference.")] = (
        None
    )
    golden: Annotated[
        Path | None,
        typer.Option(help="Folder of goldens (default: M1's, the project's, the shipped).", resolve_path=True),
    ] = None
    reference_profile: Annotated[str, typer.Option(help="src or todd_upstream.")] = "src"
    edit_layer: Annotated[int | None, GOLDENS_OWN] = None
    n_top_heads: Annotated[int | None, typer.Option("--top-heads", help=GOLDENS_OWN.help)] = None
    token_class_idx: Annotated[int | None, typer.Option("--token-class", help=GOLDENS_OWN.help)] = None
    max_trials: Annotated[int | None, typer.Option(min=1, help="Trials that M2 compares (default: the profile's).")] = (
        None
    )
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:<k>.")] = "cpu"
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "fp32"
    spec: Annotated[str | None, typer.Option(help="Registered spec, alias or YAML file (default: found).")] = None
    quant: Annotated[str, typer.Option(help="none, 8bit or 4bit.")] = "none"
    n_eval: Annotated[int, typer.Option(min=1, help="Queries that M4 evaluates.")] = 50
    topk: Annotated[int, typer.Option(min=1, help="Heads in M4's vector.")] = 20
    relation_root: Annotated[
        Path | None, typer.Option(help="M7: the folder of a relation run, one folder a q_id.", resolve_path=True)
    ] = None
    pytest_option: Annotated[
        list[str] | None,
        typer.Option(help="Handed to pytest as it is, e.g. --fv-candidate=pkg.mod:make; may be given again."),
    ] = None

    def __post_init__(self) -> None:
        """What is wrong whatever runs is said before anything does."""
        if self.layout_kind not in {"own", "plan"}:
            raise FormatError(f"--layout: expected one of own, plan, found {self.layout_kind!r}")
        self.trials_file, self.lock  # noqa: B018

    @cached_property
    def trials_file(self) -> Path:
        if (trials := shipped.file(self.trials) if self.trials else shipped.trials_of(self.model, Path.cwd())) is None:
            raise FormatError(
                f"{self.model} is no shipped model, so --trials is needed: fvcore trials make --dataset FILE "
                f"--tokenizer {escapes.shell([self.model])}"
            )
        return trials.resolve()

    @cached_property
    def lock(self) -> Lock:
        return Lock.load(self.profile)

    @cached_property
    def root(self) -> Path:
        return (self.out or Path("." if self.layout_kind == "plan" else "reports")).resolve()

    @cached_property
    def fixed(self) -> FixedTrials:
        """The trials, once they are known to be of this plan."""
        fixed = read_trials(self.trials_file)
        self.lock.require(fixed.meta, len(fixed.trials), self.reference_profile)
        return fixed

    @cached_property
    def layout(self) -> Layout:
        plan, place = self.layout_kind == "plan", Path(self.fixed.dataset, self.fixed.id)
        own = Path("milestones", particular(self.trials_file, self.reference_profile, self.model))
        ours, results = (self.root / (name if plan else own) for name in ("results_fv", "results"))
        runs, diff = ours / place, ours / self.fixed.dataset if plan else ours / place / "diff"
        return Layout(runs, results, results / place, diff, self.root / "golden", runs / "milestones.json")

    @property
    def settings(self) -> dict[str, Any]:
        """What two milestones must share to build on one another."""
        return {
            "profile": self.lock.name,
            "model": self.model,
            "weights_sha": self.weights_sha,
            "trials_sha256": sha256_file(self.trials_file),
            "reference_profile": self.reference_profile,
            **{name: self.chosen(name) for name in CHOSEN},
            "dtype": self.dtype,
            "quant": self.quant,
        }

    def file(self, name: str) -> Path:
        """One that a record names, below the root."""
        return names.below(self.root, name)

    def raw_dataset(self) -> Path:
        """What the trials were drawn from: as given, else where the file says, else as it ships."""
        named = self.dataset_json or Path(self.fixed.meta.dataset_json)
        if (place := shipped.file(named)).is_file():
            return place
        raise Failed(f"the raw dataset {named} is not here: --dataset-json FILE")

    def chosen(self, name: str) -> int:
        """As given, else as this model's golden has it, else the lock's."""
        given: int | None = getattr(self, name)
        if given is None:
            golden = self.find_golden()
            given = getattr(self.lock.defaults if golden is None else golden.profile.identity, name)
        return int(given)

    @cached_property
    def weights_sha(self) -> str:
        """Of the model as a recording has it. The model is let go again: pytest has one of its own."""
        from fvcore.model import model as models

        device = "cpu" if self.quant == "none" else self.device
        return models.load(self.model, device, self.dtype, spec=self.spec, quant=self.quant).weights_sha

    def _any_golden(self) -> Golden | None:
        """A golden of these trials: M1's own, else another; this model's where there is one."""
        from pytest_fvparity.golden.golden import Golden, NoGolden, locate, relative_path, search_roots

        place = relative_path(self.fixed.dataset, self.fixed.id, self.reference_profile)
        roots = [self.layout.goldens, *search_roots(self.golden, Path.cwd())]
        try:
            return Golden.open(locate(roots, place, self.weights_sha))
        except NoGolden:
            return None

    def find_golden(self) -> Golden | None:
        """The golden of these trials and this model: what was recorded from other weights says nothing of it."""
        golden = self._any_golden()
        return golden if golden and golden.profile.identity.weights_sha == self.weights_sha else None

    def require_golden(self) -> Golden:
        if (golden := self.find_golden()) is None:
            found = self._any_golden()
            other = f" (that at {found.path} is of {found.profile.conditions.model}, other weights)" if found else ""
            raise Failed(
                f"there is no golden of {self.fixed.id} from {self.model}{other}: run M1 with --fv-src PATH, a checkout "
                "of the reference"
            )
        return golden

    def parity(self, report_dir: Path, options: Sequence[str], keys: Sequence[str] = CHECK_KEYS) -> Report:
        """Run the checks of some keys in a pytest of its own, from the current folder, and return its report.

        A conftest.py there, and with it the candidate, counts as in any run by hand.
        """
        chosen = [] if tuple(keys) == CHECK_KEYS else ["-k", " or ".join(keys)]
        words = [*chosen, f"--fv-trials={self.trials_file}", f"--fv-report-dir={report_dir}", *options, *self.running]
        under = under_of(report_dir, self.trials_file, self.reference_profile, self.model)
        path = report_dir / self.fixed.dataset / self.fixed.id / under / f"{REPORT}.json"
        run_pytest("parity", words, path)
        return read_report(path)

    def compared_weights(self) -> Any:
        """The digest of the weights that M2 compared."""
        return read_report(self.layout.runs / f"{REPORT}.json").of_profile("identity").get("weights_sha")

    @property
    def running(self) -> list[str]:
        """Options of every run, whatever it compares."""
        asked = ("model", "reference_profile", "device", "dtype", "quant", "spec")
        return [*_options({name: getattr(self, name) for name in asked}), *(self.pytest_option or ())]

    def comparing(self, n_trials: int | None = None) -> list[str]:
        """Options of a run against a golden; `n_trials` of them at the per-trial keys, or as many as was asked for."""
        golden = self.find_golden()
        n_trials = n_trials or self.max_trials or min(self.lock.defaults.max_trials, len(self.fixed.trials))
        # golden/<dataset>/<trials>/<profile> -> golden
        more = {"max-trials": n_trials, "golden": golden.path.parents[2] if golden else None}
        return _options({option: getattr(self, name) for name, option in CHOSEN.items()} | more)

    def recording(self) -> list[str]:
        """Options of a run of the reference."""
        if self.src is None:
            raise Failed("the reference has to run: --fv-src PATH, a checkout of it")
        chosen = {option: self.chosen(name) for name, option in CHOSEN.items()}
        return _options({**chosen, "src": self.src, "src-python": self.src_python})


def _options(given: Mapping[str, Any]) -> list[str]:
    """The plugin's options, without those that are not given."""
    return [f"--fv-{name.replace('_', '-')}={value}" for name, value in given.items() if value is not None]


def run_pytest(marker: str, words: Sequence[str], report: Path, what: str = "") -> int:
    """The stages of a marker in a pytest of its own, from the current folder; its exit status, once it wrote its report."""
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", marker, "-q", "-p", "no:cacheprovider", *words]
    code = subprocess.run(following(command), check=False).returncode
    if not report.is_file():
        raise Failed(f"{what}pytest ended with status {code} and wrote no report; what it printed says why")
    return code
