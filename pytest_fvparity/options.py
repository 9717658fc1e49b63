"""The --fv-* options and their ini twins, read once into one frozen view. Imports no torch."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, NewType, get_args, get_origin, get_type_hints

import pytest

from fvcore import embedded, escapes, shipped, sizes

if TYPE_CHECKING:
    from pytest_fvparity.suite.declaration import Declaration

REFERENCE_PROFILES = ("src", "todd_upstream")
ENGINES = ("fast", "exact")
"""Not fvcore's `screened`: estimates are compared with nothing."""
QUANTS = ("none", "8bit", "4bit")
DEVICES = "cpu, cuda, cuda:N or auto"

Memory = NewType("Memory", int)
"""Bytes; written with a unit."""

NUMBERS: dict[type, str] = {int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class ParityOption:
    """One option: `--fv-<name>` on the command line, `fv_<name>` in the ini file, there with `_` for `-`."""

    field: str
    type: type
    many: bool
    help: str
    default: Any = None
    choices: tuple[str, ...] | None = None
    ini: bool = True

    @property
    def flag(self) -> str:
        return f"--{self.dest.replace('_', '-')}"

    @property
    def dest(self) -> str:
        return f"fv_{self.field}"


def _option(help: str, **how: Any) -> Any:
    """A field of `ParityOptions` that is an option; its name and type are the field's."""
    return field(metadata={"help": help, **how})


@dataclass(frozen=True)
class ParityOptions:
    """All options of a run, typed, and each as the command line has it; paths are absolute."""

    rootdir: Path
    here: Path
    beside: Path
    """The folder in which --fv-candidate is looked for first: this one, or that of the ini file that names it."""
    model: str = _option(
        f"shipped model, directory or cached hub id (default {shipped.DEFAULT_MODEL})", default=shipped.DEFAULT_MODEL
    )
    spec: str | None = _option(
        "where the model keeps its parts: a registered spec, an alias, or a YAML file (default: found)"
    )
    trials: tuple[Path, ...] = _option("fixed-trials file; may be given several times")
    golden: Path | None = _option("folder of goldens (default: golden/ of the project, then the shipped ones)")
    golden_fetch: bool = _option("fetch what a golden keeps elsewhere, by the URL in its manifest")
    regen_golden: bool = _option("record the golden from the reference (needs --fv-src), then compare", ini=False)
    golden_diff: bool = _option("say what --fv-regen-golden would change, and change nothing", ini=False)
    regen_allow_ci: bool = _option("allow --fv-regen-golden in CI", ini=False)
    live: bool = _option("compare with a run of the reference made now (needs --fv-src); no golden is read or written")
    candidate: str | None = _option("implementation under test: package.module:factory (default: hook, else fvcore)")
    candidate_python: str | None = _option("interpreter that runs --fv-candidate (default: this one)")
    isolate: bool = _option(
        "run --fv-candidate in a process of its own, so that it can neither end nor change this one"
    )
    candidate_timeout: float = _option(
        "seconds after which a candidate in another process has failed that gave no answer (default 3600)",
        default=3600.0,
    )
    candidate_dir: Path | None = _option("folder of artifacts the candidate has computed already")
    src: Path | None = _option("checkout of the public reference")
    src_python: str | None = _option("interpreter that runs the reference (default: this one)")
    reference_profile: str = _option("src (default) or todd_upstream", default="src", choices=REFERENCE_PROFILES)
    engine: str = _option(
        "how fvcore computes means and effects: fast (default), or exact; screened, which estimates, is no choice here but of "
        "fvcore's own runs, --engine",
        default="fast",
        choices=ENGINES,
    )
    max_memory: Memory | None = _option(
        "memory that engine fast may take beside the weights, such as 8GiB (default: half of what is free)"
    )
    device: str = _option(f"{DEVICES} (default cpu)")
    dtype: str = _option("fp32 (default), fp16 or bf16", default="fp32", choices=("fp32", "fp16", "bf16"))
    quant: str = _option("none (default), 8bit or 4bit (bitsandbytes, on CUDA)", default="none", choices=QUANTS)
    device_map: str | None = _option("in place of --fv-device: auto, balanced, sequential (needs accelerate)")
    attn: str | None = _option("attention implementation: eager, sdpa, ... (default: the library's)")
    seed: int = _option("seed of everything random beside the trials (default 0)", default=0)
    max_trials: int | None = _option("compare the first N trials of the per-trial keys")
    top_heads: int | None = _option("number of top heads (default: the golden's; 10 when recording)")
    token_class: int | None = _option(
        "token class of the effect, -1 the last token (default: the golden's; -1 when recording)"
    )
    edit_layer: int | None = _option("block whose output is injected into (default: the golden's; 9 when recording)")
    tolerances: Path | None = _option("YAML file in place of the default tolerances")
    keep_going: bool = _option("judge later keys too, on their own and on golden inputs, instead of blocking them")
    repeat: int = _option(
        "ask the candidate N times for each key: it must say the same each time (default 1)", default=1
    )
    drill: bool = _option("when mean_activations fails, name the first module that differs from the reference's")
    require_gpu: bool = _option("fail instead of skipping when there is no CUDA device")
    report_dir: Path = _option("where reports are written (default reports/)", default="reports")
    bundle: Path | None = _option("folder for a file of the earliest failure, for `fvparity replay`; none when green")
    relation_root: Path | None = _option("folder of a relation run, one folder a q_id, for -m transfer")
    select_kv: Path | None = _option("config or run folder of `fvcore select-kv`, for -m selectkv (default: tiny.yaml)")
    audit: Path | None = _option("config of `fvcore pathways`, for -m audit: whose data is judged")
    qid: tuple[str, ...] = _option("q_id of that run; may be given several times (default: all)", ini=False)

    @classmethod
    def from_config(cls, config: pytest.Config) -> ParityOptions:
        """Read and check the options; raises pytest.UsageError before anything is collected."""
        given = {option.field: _value(config, option) for option in OPTIONS}
        given["device"] = given["device"] or ("cuda" if given["require_gpu"] else None)
        for message in _contradictions(given):
            raise pytest.UsageError(message)
        for option in OPTIONS:
            if option.type is bool:
                given[option.field] = bool(given[option.field])
            elif option.many:
                given[option.field] = tuple(given[option.field] or ())
            elif option.type is Memory and given[option.field] is not None:
                given[option.field] = _memory(option, given[option.field])
            elif option.type is Path and given[option.field] is not None:
                given[option.field] = _path(base_of(config, option.field), given[option.field])
        given["device"] = given["device"] or "cpu"
        given["trials"] = tuple(_trials_file(base_of(config, "trials"), name) for name in given["trials"])
        given["spec"] = _spec(base_of(config, "spec"), given["spec"])
        given["model"] = _model(base_of(config, "model"), given["model"])
        for name in ("candidate_python", "src_python"):
            given[name] = _interpreter(base_of(config, name), given[name])
        given["beside"] = base_of(config, "candidate")
        return cls(**given, rootdir=config.rootpath, here=config.invocation_params.dir)

    @property
    def golden_roots(self) -> list[Path]:
        """Where goldens are looked for, each once."""
        from pytest_fvparity.golden.golden import search_roots

        return search_roots(self.golden, self.rootdir)

    def shown(self, path: Path) -> str:
        """A path as a report shows it: inside the project relative, so that reports of two machines agree."""
        return path.relative_to(self.rootdir).as_posix() if path.is_relative_to(self.rootdir) else str(path)

    def from_here(self, path: Path) -> str:
        """A path as the terminal shows it: from the folder this run was started in if it is inside."""
        return str(path.relative_to(self.here) if path.is_relative_to(self.here) else path)

    @property
    def model_words(self) -> list[str]:
        """How a command that is typed in the project's folder names the model of this run."""
        path = Path(self.model)
        words = [self.shown(path) if path.is_absolute() else self.model]
        return words if self.spec is None else [*words, "--spec", self.spec]

    def default_trials(self, config: pytest.Config) -> Path:
        """The trials of a shipped model; for any other model the command that makes some is shown."""
        path = shipped.trials_of(self.model, self.rootdir)
        if path and not path.is_relative_to(self.rootdir) and not shipped.is_packaged():
            # Collecting there would read that checkout's root conftest.py, which pytest allows in its own root only.
            raise pytest.UsageError(
                f"the project is installed from {shipped.root()} (editable): run `pytest -m parity` there, or copy "
                f"{path} into this project and give it as --fv-trials"
            )
        if path is None:
            require_model(config, self.model)
            raise pytest.UsageError(
                f"--fv-model={self.model_words[0]} is no shipped model, so --fv-trials is needed. Make a file with `fvcore trials "
                f"make --dataset datasets/antonym/raw/antonym.json --n-trials 10 --n-shots 10 --seed 0 --tokenizer "
                f"{escapes.shell(self.model_words[:1])}`"
            )
        return path


def _contradictions(given: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with the options, if anything is."""
    device = given["device"] or "cpu"
    if given["require_gpu"] and device == "cpu":
        yield "--fv-require-gpu contradicts --fv-device cpu"
    if device not in {"cpu", "auto"} and device.partition(":")[0] != "cuda":
        yield f"--fv-device: expected {DEVICES}, found {device!r}"
    if given["device_map"] is not None and given["device"] is not None:
        yield "--fv-device and --fv-device-map are two answers to one question: give one of them"
    if given["max_trials"] is not None and given["max_trials"] < 1:
        yield f"--fv-max-trials: at least 1, found {given['max_trials']}"
    if given["repeat"] < 1:
        yield f"--fv-repeat: at least 1, found {given['repeat']}"
    if not given["candidate_timeout"] > 0:
        yield f"--fv-candidate-timeout: more than 0 s, found {given['candidate_timeout']:g}"
    if given["live"] and given["regen_golden"]:
        yield "--fv-live changes no golden and --fv-regen-golden does: give one of them"
    if given["golden_diff"] and (given["live"] or given["regen_golden"]):
        other = "--fv-live" if given["live"] else "--fv-regen-golden"
        yield f"--fv-golden-diff is a dry run of recording and {other} is none: give one of them"
    if given["candidate_dir"] and given["candidate"]:
        yield "--fv-candidate runs a candidate and --fv-candidate-dir reads one: give one of them"
    if given["candidate_python"] and not given["candidate"]:
        yield "--fv-candidate-python runs --fv-candidate=package.module:factory: give that too"
    if given["isolate"] and (given["candidate_python"] or not given["candidate"]):
        yield "--fv-isolate runs --fv-candidate=package.module:factory in this interpreter once more: give that, and no other"
    for flag in [f"--fv-{name.replace('_', '-')}" for name in ("live", "regen_golden", "golden_diff") if given[name]]:
        if given["quant"] != "none":
            yield f"{flag} runs the reference, which is recorded unquantised: give no --fv-quant"
        if given["src"] is None:
            from pytest_fvparity.reference.checkout import GET_ONE

            yield f"{flag} needs a checkout of the reference: {GET_ONE}"


OPTIONS_KEY = pytest.StashKey[ParityOptions]()


def _options() -> Iterator[ParityOption]:
    hints = get_type_hints(ParityOptions)
    for one in fields(ParityOptions):
        if one.metadata:
            kind = hints[one.name]
            first = next(iter(get_args(kind) or [kind]))  # of `X | None` and of `tuple[X, ...]` that is X
            yield ParityOption(one.name, first, get_origin(kind) is tuple, **one.metadata)


OPTIONS = tuple(_options())


def register(parser: pytest.Parser) -> None:
    group = parser.getgroup("fvparity", "parity of function-vector implementations")
    for option in OPTIONS:
        how: dict[str, Any] = {"dest": option.dest, "default": None, "help": option.help}
        if option.type is bool:
            how["action"] = "store_true"
        else:
            kind = str if option.type in (Path, Memory) else option.type
            how |= {"type": kind, "metavar": option.field.rpartition("_")[2].upper()}
            how |= {"action": "append"} if option.many else {}
            how |= {"choices": option.choices, "metavar": None} if option.choices else {}
        group.addoption(option.flag, **how)
        if option.ini:
            # Numbers too are read as text: pytest's own error for a wrong one does not name the option.
            ini: Any = "linelist" if option.many else "bool" if option.type is bool else "string"
            parser.addini(option.dest, option.help, type=ini, default=None)


def _value(config: pytest.Config, option: ParityOption) -> Any:
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


def base_of(config: pytest.Config, name: str) -> Path:
    """A path on the command line is relative to where one types, a path in the ini file to that file."""
    if config.getoption(f"fv_{name}") is not None or config.inipath is None:
        return config.invocation_params.dir
    return config.inipath.parent


def _path(base: Path, name: str) -> Path:
    return (base / Path(name).expanduser()).resolve()


def _model(base: Path, name: str) -> str:
    """A shipped name or a hub id as it is, a directory by its absolute path."""
    path = base / Path(name).expanduser()
    is_path = path.is_dir() or name.count("/") > 1 or name[:1] in {".", "/", "~"}
    return str(path.resolve()) if is_path and name not in (*embedded.EMBEDDED, embedded.WIRED) else name


def require_model(config: pytest.Config, name: str) -> None:
    """Raise pytest.UsageError where there is no such model, with the directory that was looked for."""
    from fvcore.model.on_disk import ModelError, folder_of

    try:
        folder_of(name, base_of(config, "model"))
    except ModelError as error:
        raise pytest.UsageError(f"--fv-model: {error}") from None


def _interpreter(base: Path, name: str | None) -> str | None:
    """A path is relative to where it was written; its links stay, for by them an environment knows itself."""
    return name if name is None or os.sep not in name else str(base / Path(name).expanduser())


def _memory(option: ParityOption, text: str) -> int:
    try:
        return sizes.n_bytes(text)
    except ValueError as error:
        raise pytest.UsageError(f"{option.flag} or ini {option.dest}: {error}, found {text!r:.80}") from None


def _spec(base: Path, name: str | None) -> str | None:
    """A spec's name, or the absolute path of its file; both are checked before anything is collected."""
    if name is None:
        return None
    from fvcore.formats import FormatError
    from fvcore.model.spec import ModelError, is_file_name, spec_of

    chosen = str(_path(base, name)) if is_file_name(name) else name
    try:
        spec_of(chosen)
    except (FormatError, ModelError) as error:
        raise pytest.UsageError(f"--fv-spec: {error}") from None
    return chosen


def _trials_file(base: Path, name: str) -> Path:
    path = _path(base, name)
    if not path.is_file():
        path = shipped.file(name).resolve()
    if not path.is_file():
        raise pytest.UsageError(f"--fv-trials: no such file: {name}. `fvcore trials make` writes one")
    return path


def reproduce(config: pytest.Config, nodeid: str, declared: Declaration | None) -> str:
    """One line that runs this stage alone, from the folder this run was started in."""
    here, (file, _, stage) = config.invocation_params.dir, nodeid.partition("::")
    path, (suite, _, key) = config.rootpath / file, stage.rpartition("::")
    given, carried = _reproduce_options(config), _carried(config)
    if declared is None or path.is_relative_to(here):
        shown = path.relative_to(here).as_posix() if path.is_relative_to(here) else path
        return escapes.shell(["pytest", *carried, f"{shown}::{stage}", *given])
    # An argument outside this folder would leave the conftest.py here unread, and with it the candidate.
    return escapes.shell(["pytest", *carried, "-m", suite, "-k", key, declared.option(path), *given])


# fmt: off
_DULL = {
    "keyword", "markexpr", "deselect", "ignore", "ignore_glob", "file_or_dir", "collectonly", "lf", "failedfirst",
    "newfirst", "stepwise", "stepwise_skip", "stepwise_reset", "maxfail", "last_failed_no_failures", "numprocesses",
    "maxprocesses", "dist", "tx", "px", "distload", "looponfail", "verbose", "no_header", "no_summary", "reportchars",
    "tbstyle", "showlocals", "fulltrace", "color", "code_highlight", "disable_warnings", "durations", "durations_min",
    "xmlpath", "junitprefix", "pastebin", "cacheclear", "cacheshow", "usepdb", "usepdb_cls", "trace", "basetemp", "log_file",
}
# fmt: on
"""Options of pytest and its plugins, by destination, that choose what runs or how it is shown: no outcome hangs on them."""


def _carried(config: pytest.Config) -> list[str]:
    """What PYTEST_ADDOPTS and the command line say beside this plugin's own options and the dull ones, also options of a
    user's conftest.py."""
    known: Mapping[str, Any] = getattr(config._parser.optparser, "_option_string_actions", {})
    dull = _DULL | {option.dest for option in OPTIONS}
    given = list(map(str, config.invocation_params.args))
    words, kept = [*shlex.split(os.environ.get("PYTEST_ADDOPTS", "")), *given], list[str]()
    while words and words[0] != "--":
        word = words.pop(0)
        name = word.partition("=")[0] if word.startswith("--") else word[:2]
        action = known.get(name)
        n_more = 0 if action is None or word != name or action.nargs == 0 else 1
        more, words = words[:n_more], words[n_more:]
        if not word.startswith("-") or getattr(action, "dest", "") in dull:
            continue
        kept += [word, *more]
    return kept


def _reproduce_options(config: pytest.Config) -> list[str]:
    """The options given on the command line that a stage's outcome depends on."""
    dull = {"regen_golden", "regen_allow_ci", "report_dir", "bundle", "keep_going", "require_gpu"}
    dull |= {"trials", "qid", "select_kv", "audit", "device"}  # said beside these
    device = config.stash[OPTIONS_KEY].device
    words = [] if device == "cpu" else [f"--fv-device={device}"]
    for option in OPTIONS:
        value = config.getoption(option.dest)
        if option.field not in dull and value is not None:
            # With `=`: pytest takes an existing path that stands alone for a test path, and moves its rootdir there.
            words.append(option.flag if option.type is bool else f"{option.flag}={value}")
    return words
