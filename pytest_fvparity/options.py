"""The --fv-* options and their ini twins, read once into one frozen view. Imports no torch."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from pytest_fvparity import shipped

REFERENCE_PROFILES = ("src", "todd_upstream")
QUANTS = ("none", "8bit", "4bit")
DEVICES = "cpu, cuda, cuda:N or auto"


@dataclass(frozen=True)
class _Option:
    """One option: `--fv-<name>` on the command line, `fv_<name>` in the ini file."""

    name: str
    help: str
    type: type = str
    default: Any = None
    many: bool = False
    choices: tuple[str, ...] | None = None
    ini: bool = True

    @property
    def flag(self) -> str:
        return f"--fv-{self.name}"

    @property
    def dest(self) -> str:
        return f"fv_{self.name.replace('-', '_')}"


NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}

OPTIONS = (
    _Option("model", f"shipped model, directory or cached hub id (default {shipped.DEFAULT_MODEL})"),
    _Option("spec", "where the model keeps its parts: a registered spec, an alias, or a YAML file (default: found)"),
    _Option("trials", "fixed-trials file; may be given several times", many=True),
    _Option("golden", "folder of goldens (default: golden/ of the project, then the shipped ones)"),
    _Option("golden-fetch", "fetch what a golden keeps elsewhere, by the URL in its manifest", bool),
    _Option("regen-golden", "record the golden from the reference (needs --fv-src), then compare", bool, ini=False),
    _Option("golden-diff", "say what --fv-regen-golden would change, and change nothing", bool, ini=False),
    _Option("regen-allow-ci", "allow --fv-regen-golden in CI", bool, ini=False),
    _Option(
        "live", "compare with a run of the reference made now (needs --fv-src); no golden is read or written", bool
    ),
    _Option("candidate", "implementation under test: package.module:factory (default: hook, else fvcore)"),
    _Option("candidate-python", "interpreter that runs --fv-candidate (default: this one)"),
    _Option("candidate-dir", "folder of artifacts the candidate has computed already"),
    _Option("src", "checkout of the public reference"),
    _Option("src-python", "interpreter that runs the reference (default: this one)"),
    _Option("reference-profile", "src (default) or todd_upstream", default="src", choices=REFERENCE_PROFILES),
    _Option("engine", "how fvcore computes means and effects: fast (default) or exact", default="fast"),
    _Option("max-memory", "GiB that engine fast may take beside the weights (default: half of what is free)", float),
    _Option("device", f"{DEVICES} (default cpu)"),
    _Option("dtype", "fp32 (default), fp16 or bf16", default="fp32", choices=("fp32", "fp16", "bf16")),
    _Option("quant", "none (default), 8bit or 4bit (bitsandbytes, on CUDA)", default="none", choices=QUANTS),
    _Option("device-map", "in place of --fv-device: auto, balanced, sequential (needs accelerate)"),
    _Option("attn", "attention implementation: eager, sdpa, ... (default: the library's)"),
    _Option("seed", "seed of everything random beside the trials (default 0)", int, default=0),
    _Option("max-trials", "compare the first N trials of the per-trial keys", int),
    _Option("top-heads", "number of top heads (default: the golden's; 10 when recording)", int),
    _Option(
        "token-class", "token class of the effect, -1 the last token (default: the golden's; -1 when recording)", int
    ),
    _Option("edit-layer", "block whose output is injected into (default: the golden's; 9 when recording)", int),
    _Option("tolerances", "YAML file in place of the default tolerances"),
    _Option("keep-going", "judge later keys too, on their own and on golden inputs, instead of blocking them", bool),
    _Option(
        "repeat", "ask the candidate N times for each key: it must say the same each time (default 1)", int, default=1
    ),
    _Option("drill", "when mean_activations fails, name the first module that differs from the reference's", bool),
    _Option("require-gpu", "fail instead of skipping when there is no CUDA device", bool),
    _Option("report-dir", "where reports are written (default reports/)", default="reports"),
    _Option("relation-root", "folder of a relation run, one folder a q_id, for -m transfer"),
    _Option("qid", "q_id of that run; may be given several times (default: all)", many=True, ini=False),
)


def register(parser: pytest.Parser) -> None:
    group = parser.getgroup("fvparity", "parity of function-vector implementations")
    for option in OPTIONS:
        how: dict[str, Any] = {"dest": option.dest, "default": None, "help": option.help}
        if option.type is bool:
            how["action"] = "store_true"
        else:
            how |= {"type": option.type, "metavar": option.name.rpartition("-")[2].upper()}
            how |= {"action": "append"} if option.many else {}
            how |= {"choices": option.choices, "metavar": None} if option.choices else {}
        group.addoption(option.flag, **how)
        if option.ini:
            # Numbers too are read as text: pytest's own error for a wrong one does not name the option.
            kind: Any = "linelist" if option.many else "bool" if option.type is bool else "string"
            parser.addini(option.dest, option.help, type=kind, default=None)


def _value(config: pytest.Config, option: _Option) -> Any:
    """Command line, then ini file, then default."""
    given = config.getoption(option.dest)
    if given is not None or not option.ini:
        return given
    written = config.getini(option.dest)
    if written is None or written in ("", []):
        return option.default
    if option.type in NUMBERS:
        try:
            return option.type(written)
        except ValueError:
            raise pytest.UsageError(f"ini {option.dest}: expected {NUMBERS[option.type]}, found {written!r}") from None
    if option.choices and written not in option.choices:
        raise pytest.UsageError(f"ini {option.dest}: expected one of {', '.join(option.choices)}, found {written!r}")
    return written


@dataclass(frozen=True)
class ParityOptions:
    """All options of a run, typed; paths are absolute."""

    model: str
    spec: str | None
    trials: tuple[Path, ...]
    golden: Path | None
    golden_fetch: bool
    regen_golden: bool
    golden_diff: bool
    regen_allow_ci: bool
    live: bool
    candidate: str | None
    candidate_python: str | None
    candidate_dir: Path | None
    src: Path | None
    src_python: str | None
    reference_profile: str
    engine: str
    max_memory: float | None
    device: str
    dtype: str
    quant: str
    device_map: str | None
    attn: str | None
    seed: int
    max_trials: int | None
    top_heads: int | None
    token_class: int | None
    edit_layer: int | None
    tolerances: Path | None
    keep_going: bool
    repeat: int
    drill: bool
    require_gpu: bool
    report_dir: Path
    relation_root: Path | None
    qid: tuple[str, ...]
    rootdir: Path

    @classmethod
    def from_config(cls, config: pytest.Config) -> ParityOptions:
        """Read and check the options; raises pytest.UsageError before anything is collected."""
        given = {option.dest.removeprefix("fv_"): _value(config, option) for option in OPTIONS}
        device = given["device"] or ("cuda" if given["require_gpu"] else "cpu")
        if given["require_gpu"] and device == "cpu":
            raise pytest.UsageError("--fv-require-gpu contradicts --fv-device cpu")
        if device not in {"cpu", "auto"} and device.partition(":")[0] != "cuda":
            raise pytest.UsageError(f"--fv-device: expected {DEVICES}, found {device!r}")
        if given["device_map"] is not None and given["device"] is not None:
            raise pytest.UsageError("--fv-device and --fv-device-map are two answers to one question: give one of them")
        if given["max_trials"] is not None and given["max_trials"] < 1:
            raise pytest.UsageError(f"--fv-max-trials: at least 1, found {given['max_trials']}")
        if given["repeat"] < 1:
            raise pytest.UsageError(f"--fv-repeat: at least 1, found {given['repeat']}")
        if given["max_memory"] is not None and given["max_memory"] <= 0:
            raise pytest.UsageError(f"--fv-max-memory: more than 0 GiB, found {given['max_memory']:g}")
        if given["live"] and given["regen_golden"]:
            raise pytest.UsageError("--fv-live changes no golden and --fv-regen-golden does: give one of them")
        if given["golden_diff"] and (given["live"] or given["regen_golden"]):
            other = "--fv-live" if given["live"] else "--fv-regen-golden"
            raise pytest.UsageError(f"--fv-golden-diff is a dry run of recording and {other} is none: give one of them")
        if given["candidate_dir"] and given["candidate"]:
            raise pytest.UsageError(
                "--fv-candidate runs a candidate and --fv-candidate-dir reads one: give one of them"
            )
        if given["candidate_python"] and not given["candidate"]:
            raise pytest.UsageError("--fv-candidate-python runs --fv-candidate=package.module:factory: give that too")
        runs = [name for name in ("live", "regen_golden", "golden_diff") if given[name]]
        if runs and given["quant"] != "none":
            flag = f"--fv-{runs[0].replace('_', '-')}"
            raise pytest.UsageError(f"{flag} runs the reference, which is recorded unquantised: give no --fv-quant")
        if runs and given["src"] is None:
            from pytest_fvparity.reference.reference import GET_ONE

            flag = f"--fv-{runs[0].replace('_', '-')}"
            raise pytest.UsageError(f"{flag} needs a checkout of the reference: {GET_ONE}")
        paths = {name: _path(_base(config, name), given[name]) for name in _PATHS}
        trials = tuple(_trials_file(_base(config, "trials"), name) for name in given["trials"] or ())
        flags = {name: bool(given[name]) for name, option in _by_dest().items() if option.type is bool}
        model = given["model"] or shipped.DEFAULT_MODEL
        return cls(
            **{
                **given,
                **paths,
                **flags,
                "trials": trials,
                "qid": tuple(given["qid"] or ()),
                "device": device,
                "model": model,
                "spec": _spec(_base(config, "spec"), given["spec"]),
                "rootdir": config.rootpath,
            }
        )

    def default_trials(self) -> Path:
        """The trials of a shipped model; for any other model the command that makes some is shown."""
        path = shipped.trials_of(self.model, self.rootdir)
        if path and not path.is_relative_to(self.rootdir) and not shipped.is_packaged():
            # Collecting there would read that checkout's root conftest.py, which pytest allows in its own root only.
            raise pytest.UsageError(
                f"the project is installed from {shipped.root()} (editable): run `pytest -m parity` there, or copy "
                f"{path} into this project and give it as --fv-trials"
            )
        if path is None:
            raise pytest.UsageError(
                f"--fv-model {self.model} is no shipped model, so --fv-trials is needed. Make a file with `fvcore trials "
                f"make --dataset datasets/antonym/raw/antonym.json --n-trials 10 --n-shots 10 --seed 0 --tokenizer "
                f"{self.model}`"
            )
        return path


OPTIONS_KEY = pytest.StashKey[ParityOptions]()


def _by_dest() -> Mapping[str, _Option]:
    return {option.dest.removeprefix("fv_"): option for option in OPTIONS}


_PATHS = ("golden", "src", "tolerances", "report_dir", "candidate_dir", "relation_root")


def _base(config: pytest.Config, name: str) -> Path:
    """A path on the command line is relative to where one types, a path in the ini file to that file."""
    if config.getoption(f"fv_{name}") is not None or config.inipath is None:
        return config.invocation_params.dir
    return config.inipath.parent


def _path(base: Path, name: str | None) -> Path | None:
    return None if name is None else (base / Path(name).expanduser()).resolve()


def _spec(base: Path, name: str | None) -> str | None:
    """A spec's name, or the absolute path of its file; both are checked before anything is collected."""
    if name is None:
        return None
    from fvcore.formats import FormatError
    from fvcore.model.spec import ModelError
    from fvcore.model.spec_files import is_file_name, spec_of

    chosen = str((base / Path(name).expanduser()).resolve()) if is_file_name(name) else name
    try:
        spec_of(chosen)
    except (FormatError, ModelError) as error:
        raise pytest.UsageError(f"--fv-spec: {error}") from None
    return chosen


def _trials_file(base: Path, name: str) -> Path:
    path = (base / Path(name).expanduser()).resolve()
    if not path.is_file():
        raise pytest.UsageError(f"--fv-trials: no such file: {name}. `fvcore trials make` writes one")
    return path


def reproduce(config: pytest.Config, trials_file: str, key: str) -> str:
    """One line that runs this stage alone, from the folder this run was started in."""
    here, path = config.invocation_params.dir, config.rootpath / trials_file
    given, carried = _reproduce_options(config), _carried([str(word) for word in config.invocation_params.args])
    if path.is_relative_to(here):
        return shlex.join(["pytest", *carried, f"{path.relative_to(here).as_posix()}::parity::{key}", *given])
    # An argument outside this folder would leave the conftest.py here unread, and with it the candidate.
    return shlex.join(["pytest", *carried, "-m", "parity", "-k", key, f"--fv-trials={path}", *given])


_CARRIED = ("-p", "-c", "--config-file", "-o", "--override-ini", "--rootdir", "--confcutdir", "--import-mode")


def _carried(words: Sequence[str]) -> list[str]:
    """pytest's own options that decide which code runs: plugins, configuration, where conftest files are looked for."""
    kept: list[str] = []
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word in _CARRIED:
            kept += [word, following]
        elif word.startswith(_CARRIED) and ("=" in word or not word.startswith("--")):
            kept.append(word)
    return kept


def _reproduce_options(config: pytest.Config) -> list[str]:
    """The options given on the command line that a stage's outcome depends on."""
    dull = {"trials", "regen-golden", "regen-allow-ci", "report-dir", "keep-going", "require-gpu", "device"}
    device = config.stash[OPTIONS_KEY].device
    words = [] if device == "cpu" else [f"--fv-device={device}"]
    for option in OPTIONS:
        value = config.getoption(option.dest)
        if option.name in dull or value is None:
            continue
        # With `=`: pytest takes an existing path that stands alone for a test path, and moves its rootdir there.
        words.append(option.flag if option.type is bool else f"{option.flag}={value}")
    return words
