"""The steps, in order: which settings and which files each depends on, what it leaves, and what must hold before it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, TypeAlias

from fvcore.experiments.config import ConfigError, dotted
from fvcore.experiments.errors import OtherSettings, StepError
from fvcore.experiments.folder import Folder
from fvcore.experiments.sae.audit import VALIDATION, fingerprint
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.contexts import CONTEXTS
from fvcore.experiments.sae.features import FEATURES
from fvcore.experiments.sae.pathways import PATHWAYS
from fvcore.experiments.sae.schemas import Validation
from fvcore.formats import read_json, validated

PROTOTYPE = "results/prototype/single_feature_test.json"
TOKENS = "results/tokens/token_associations.json"
INTEGRATED = "results/integrated/integrated_results.json"

UNITS = "results/pathways/units/*"

UNDECIDING = ("audit.workers", "sae.gpu_budget_gb", "sae.cpu_budget_gb")
"""Settings that no result depends on."""

Gate: TypeAlias = Callable[[PathwaysConfig, Folder], None]
"""Raises StepError while a step must not run, or where one that ran did not pass."""


def _there(*names: str) -> Gate:
    def gate(settings: PathwaysConfig, folder: Folder) -> None:
        for name in names:
            if not (folder / name).is_file():
                by = next(step.name for step in STEPS if any(fnmatch(name, glob) for glob in step.leaves))
                raise StepError(f"{folder / name}: not there; run `fvcore pathways {by}` first")

    return gate


def _audited(settings: PathwaysConfig, folder: Folder) -> None:
    _there(VALIDATION)(settings, folder)
    if validation_of(folder / VALIDATION).inputs_fingerprint != fingerprint(settings):
        raise OtherSettings(
            f"{folder / VALIDATION} is of other files, or of what they were before: run `fvcore pathways audit` again"
        )
    _data_passed(settings, folder)


def _data_passed(settings: PathwaysConfig, folder: Folder) -> None:
    audit = validation_of(folder / VALIDATION)
    if not audit.validated:
        failed = [group.code for group in audit.issues if group.severity == "error"]
        raise StepError(f"{folder / VALIDATION}: the data did not pass ({', '.join(failed)}); mend it, or give --force")


def validation_of(path: Path) -> Validation:
    return validated(Validation, read_json(path), path, "an audit")


def _prototype_passed(settings: PathwaysConfig, folder: Folder) -> None:
    _there(FEATURES, CONTEXTS, PROTOTYPE)(settings, folder)
    file = read_json(folder / PROTOTYPE)
    if not file["passed"]:
        failed = ", ".join(name for name, held in file["criteria"].items() if not held)
        raise StepError(f"{folder / PROTOTYPE}: the prototype did not pass ({failed}); see there, or give --force")


def _any(settings: PathwaysConfig, folder: Folder) -> None:
    """Nothing must hold."""


@dataclass(frozen=True, slots=True)
class Step:
    """about: groups of settings, or dotted names, that its results depend on     reads: files of the run, if they are there
    leaves: globs of its files     units: those that grow unit by unit, so that a killed step goes on with them
    judging: settings that its verdicts alone depend on: where nothing else differs, they are passed anew on the units that
    are there, without those (`judged`) that follow from verdicts
    gate: what must hold before it     passed: what must hold of what it wrote     each: what a bar counts
    """

    name: str
    about: tuple[str, ...]
    reads: tuple[str, ...]
    leaves: tuple[str, ...]
    units: tuple[str, ...] = ()
    judging: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    gate: Gate = _any
    passed: Gate = _any
    each: str = "layer"

    def depends_on(self, settings: PathwaysConfig, folder: Folder) -> dict[str, Any]:
        """What its results depend on, by name: settings by dotted key, files by digest; data by its fingerprint."""
        found = {
            key: value
            for key, value in dotted(settings.model_dump(mode="json"))
            if within(key, self.about) and key not in UNDECIDING
        }
        if "paths.response_logs" in self.about:
            found["data"] = fingerprint(settings)
        return found | dict(folder.digests(self.reads))


MODEL = ("model", "sae", "runtime.seed")
DATA = ("paths.checkpoints", "paths.response_logs", "conditions")

STEPS = (
    Step(
        "audit",
        (*DATA, "audit", "model.name", "sae.source", "sae.pattern"),
        (),
        (VALIDATION,),
        passed=_data_passed,
        each="file",
    ),
    Step(
        "load",
        (*DATA, "features", "prompts", "contexts", "model.name", "tokens.tokenizer"),
        (),
        (FEATURES, CONTEXTS),
        gate=_audited,
        each="file",
    ),
    Step(
        "prototype",
        (*MODEL, "prototype", "discover", "features.layers", "contexts.exclude_special"),
        (FEATURES, CONTEXTS),
        ("results/prototype/*",),
        gate=_there(FEATURES, CONTEXTS),
        passed=_prototype_passed,
    ),
    Step(
        "discover",
        (*MODEL, "discover", "contexts.exclude_special", "runtime.flush_every"),
        (FEATURES, CONTEXTS),
        ("results/pathways/*", UNITS),
        (UNITS,),
        ("discover.fdr", *(f"discover.replay.{one}" for one in ("min_rel_effect", "min_sign_agreement", "noop_tol"))),
        tuple(UNITS.replace("*", f"{one}-*") for one in ("heads", "missed")),
        _prototype_passed,
    ),
    Step(
        "tokens",
        (*DATA, *MODEL, "tokens", "prompts"),
        (FEATURES,),
        ("results/tokens/*",),
        gate=_there(FEATURES),
    ),
    Step(
        "integrate",
        (*MODEL, "integrate", "features.layers", "discover.positions", "contexts.exclude_special"),
        (FEATURES, CONTEXTS, PATHWAYS, TOKENS),
        ("results/integrated/*",),
        gate=_there(PATHWAYS),
    ),
)
"""The plan's steps 0 to 5."""

NAMES = tuple(step.name for step in STEPS)


def within(key: str, groups: Sequence[str]) -> bool:
    """Whether a dotted key is one of the groups, or in one."""
    return any(f"{key}.".startswith(f"{one}.") for one in groups)


def chosen(text: str) -> list[Step]:
    """`0-5`, `3,4` or names such as `discover,tokens`, in the order of the steps; raises ConfigError for another word."""
    found: set[int] = set()
    for word in filter(None, (one.strip() for one in text.split(","))):
        first, dash, last = word.partition("-")
        ends = [first, last if dash else first]
        if word in NAMES:
            found.add(NAMES.index(word))
        elif all(end.isdecimal() and int(end) < len(STEPS) for end in ends):
            found.update(range(int(ends[0]), int(ends[1]) + 1))
        else:
            raise ConfigError(
                f"--steps {word!r}: expected numbers from 0 to {len(STEPS) - 1}, or names of {', '.join(NAMES)}"
            )
    return [step for at, step in enumerate(STEPS) if at in found]
