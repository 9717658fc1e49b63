"""A plan's command line, run: its flags made ours, our command started, its criteria judged and printed."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import typer

from fvcore import escapes, exits
from fvcore.trials.fixed import read as read_trials
from pytest_fvparity.milestones.lock import Lock
from pytest_fvparity.plans.table import PlanUsage, Script, Way, scripts

PROFILE = "antonym-lock"
MODULES = {"fvcore": "fvcore", "fvparity": "pytest_fvparity", "pytest": "pytest"}
PYTESTS = {2: exits.INTERRUPTED, 3: exits.UNJUDGED, 4: exits.USAGE, 5: exits.UNJUDGED}
"""pytest's exit status -> ours; 0 and 1 are the same."""


def call(name: str, arguments: Sequence[str]) -> int:
    """The exit status of a script of the plans, by its path there; what is wrong is one sentence with its flag."""
    try:
        script = scripts()[name]
        given = read_flags(name, script, arguments)
        return _run(script.way(given), given)
    except exits.Expected as error:
        exits.say(str(error), name)
        return error.status


def read_flags(name: str, script: Script, arguments: Sequence[str]) -> dict[str, str]:
    """`--flag value`, `--flag=value`, and a flag alone, which is true."""
    given: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        flag, has_value, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            raise PlanUsage(f"expected a flag such as --{script.flags[0]}, found {flag!r}")
        if (known := flag[2:]) not in script.flags:
            near = get_close_matches(known, script.flags, n=1)
            flags = ", ".join(f"--{one}" for one in script.flags)
            raise PlanUsage(f"no flag {flag}; {f'did you mean --{near[0]}?' if near else f'there are {flags}'}")
        if not has_value:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        given[known] = value
    return given


def _run(way: Way, given: Mapping[str, str]) -> int:
    words, known = translated(way, given)
    exits.tell(f"$ {escapes.shell(words)}")
    options = {flag.option: f"--{name}" for name, flag in way.flags.items() if flag.option and name in given}
    status = _started(words, options)
    if status and not (way.passes == "ran_to_its_end" and status == exits.FAILED):
        return status
    return exits.PASSED if _judged(way, known) else exits.FAILED


def translated(way: Way, given: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Our command line, and the values by the plan's names, those that are the table's own among them.

    Raises PlanUsage for a flag that is missing, that this way does not have, or whose value is not taken.
    """
    if strange := next((name for name in given if name not in way.flags), None):
        raise PlanUsage(f"--{strange} does not go with {f'--{way.given}' if way.given else 'the other flags'}")
    if missing := [name for name, flag in way.flags.items() if flag.needed and name not in given]:
        raise PlanUsage(f"--{missing[0]} is missing")
    known = {**way.defaults, **given, **_of_trials(given)}
    words = []
    for name, flag in way.flags.items():  # in the table's order: a pattern may name flags that stand before it
        if name in known:
            _require_locked(name, flag.locked, known[name])
            words += flag.words(name, known[name], known)
    for variable, option in way.environment.items():
        if value := os.environ.get(variable):
            words += [f"{option}={value}", *way.live]
    return [*(word.format(**known) for word in way.command), *words], known


def _of_trials(given: Mapping[str, str]) -> dict[str, str]:
    """Dataset and id of the fixed trials, if the command line names any that are there."""
    path = Path(given.get("fixed_trials_path", ""))
    if not path.is_file():
        return {}
    fixed = read_trials(path)
    return {"dataset": fixed.dataset, "id": fixed.id}


def _require_locked(name: str, field: str | None, value: str) -> None:
    if field and value != str(locked := getattr(Lock.load(PROFILE).locked, field)):
        raise PlanUsage(
            f"--{name} {value}: profile {PROFILE} locks {field} at {locked}; another value is another plan, whose results are "
            "not comparable"
        )


def _started(words: Sequence[str], options: Mapping[str, str]) -> int:
    """Run in a process of its own; what it says is wrong names the plan's flag beside our option."""
    command = [sys.executable, "-m", MODULES[words[0]], *words[1:]]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, errors="replace") as process:
        assert process.stderr is not None
        for line in process.stderr:
            typer.echo(_with_flags(line, options), nl=False, err=True)
    status = process.returncode
    return PYTESTS.get(status, status) if words[0] == "pytest" else status


def _with_flags(line: str, options: Mapping[str, str]) -> str:
    for option, flag in options.items():
        if option != flag:
            line = re.sub(rf"(?<![\w-]){re.escape(option)}(?![\w-])", f"{flag} (here {option})", line)
    return line


def _judged(way: Way, known: Mapping[str, str]) -> bool:
    """Print each criterion and whether it is met."""
    from pytest_fvparity.plans import criteria

    if way.passes == "ran_to_its_end":
        criteria.deliver(known)
    told = [*criteria.files(way.writes, known), *(criteria.of(name, known) for name in way.criteria)]
    for met, text in told:
        exits.tell(f"{'PASS' if met else 'FAIL'} {text}")
    return all(met for met, _ in told)


def main(name: str, arguments: Iterable[str]) -> None:
    """What each written script does, with its path in the plans."""
    raise SystemExit(call(name, list(arguments)))
