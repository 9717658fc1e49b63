"""The table of the plans' scripts, as a value: `scripts.yaml` beside this file."""

import re
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from fvcore.formats import FormatError, read_yaml, validated
from fvcore.profile import Strict

TABLE = Path(__file__).with_name("scripts.yaml")
HOLE = "{}"


class PlanUsage(FormatError):
    """A plan's command line that cannot be run; the message names its flag."""


class Flag(Strict):
    """What a flag of a plan is here. One that is only a text in the table is the option that takes its value."""

    option: str | None = None
    values: dict[str, str] = Field(default={})
    pattern: str | None = None
    locked: str | None = None
    needed: bool = False
    note: str = ""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"option": value} if isinstance(value, str) else value

    def words(self, name: str, value: str, known: dict[str, str]) -> list[str]:
        """Our words for a value; raises PlanUsage where it is none that is taken. `known` learns what stood in the hole."""
        if (lowered := value.lower()) in self.values:
            return self.values[lowered].split()
        if self.values and not self.option:
            raise PlanUsage(f"--{name}: expected one of {', '.join(self.values)}, found {value!r}")
        if self.pattern is not None:
            known[f"{name}_"] = value = _hole(name, value, self.pattern, known)
        return [f"{self.option}={value}"] if self.option else []


def _hole(name: str, value: str, pattern: str, known: dict[str, str]) -> str:
    """What stands in the hole of a pattern, after its other names have their values."""
    filled = "{}".join(part.format(**known) for part in pattern.split(HOLE))
    before, hole, after = filled.partition(HOLE)
    given = value.rstrip("/")
    # A path without a folder before it stands in the current one.
    shown = f"./{given}" if hole and after.startswith("/") and "/" not in given else given
    found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}" if hole else f"({re.escape(before)})", shown)
    if found is None:
        raise PlanUsage(f"--{name}: expected {filled.replace(HOLE, '...')}, found {value!r}")
    return found[1]


class Way(Strict):
    """One of the commands that a script can be. `passes`: what says that it passed, where the exit status does not."""

    command: list[str]
    flags: dict[str, Flag]
    given: str | None = None
    environment: dict[str, str] = Field(default={})
    defaults: dict[str, str] = Field(default={})
    live: list[str] = Field(default=[])
    passes: Literal["status", "ran_to_its_end"] = "status"
    writes: list[str] = Field(default=[])
    criteria: list[str] = Field(default=[])


class Script(Strict):
    plans: list[Literal["antonym", "model-spec", "relation"]]
    says: str
    ways: list[Way]

    def way(self, given: dict[str, str]) -> Way:
        return next(way for way in self.ways if way.given is None or given.get(way.given, "false") != "false")

    @property
    def flags(self) -> list[str]:
        return list(dict.fromkeys(name for way in self.ways for name in way.flags))


@cache
def scripts() -> dict[str, Script]:
    return {name: validated(Script, value, TABLE, f"the script {name}") for name, value in read_yaml(TABLE).items()}
