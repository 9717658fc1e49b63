"""What of the plans is met where: two tables for people, made of the table of scripts and of the plans' lines."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import model_validator

from fvcore.formats import read_yaml, validated, write_text
from fvcore.profile import Strict
from pytest_fvparity.plans.table import Flag, scripts

LINES = Path(__file__).with_name("lines.yaml")


class Line(Strict):
    """Of a plan: its lines' numbers, what they are, what they ask for, where that is met, the test that holds it."""

    at: str
    kind: str
    asks: str
    met: str
    test: str

    @model_validator(mode="before")
    @classmethod
    def _of_row(cls, row: Any) -> Any:
        return dict(zip(cls.model_fields, map(str, row), strict=True)) if isinstance(row, list) else row


def lines() -> dict[str, list[Line]]:
    """Plan -> its lines, in their order."""
    return {
        plan: validated(list[Line], rows, LINES, f"the lines of plan {plan}") for plan, rows in read_yaml(LINES).items()
    }


def scripts_markdown() -> str:
    return "\n".join(_table(["in the plans", "is", ""], _flag_rows()))


def lines_markdown() -> str:
    parts = []
    for plan, rows in lines().items():
        told = ([row.at, row.kind, row.asks, row.met, f"`{row.test}`"] for row in rows)
        parts.append(
            "\n".join([f"### The {plan} plan", "", *_table(["lines", "", "asks for", "met by", "held by"], told)])
        )
    return "\n\n".join(parts)


def renewed(text: str) -> str:
    """A page with each table between its marks as it is now."""
    for name, table in {"scripts": scripts_markdown(), "lines": lines_markdown()}.items():
        begin, end = f"<!-- {name} -->\n", f"\n<!-- end of {name} -->"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{table}{end}{rest.partition(end)[2]}"
    return text


def _table(heads: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(heads)} |"
    yield f"|{'---|' * len(heads)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def _flag_rows() -> Iterator[list[str]]:
    for name, script in scripts().items():
        for way in script.ways:
            given = f" with `--{way.given}`" if way.given else ""
            yield [f"**`{name}`**{given}", f"`{' '.join(way.command)}`", script.says]
            for flag, what in way.flags.items():
                yield [f"`--{flag}`", f"`{what.option}`" if what.option else "", _said(what)]
            for variable, option in way.environment.items():
                yield [f"`{variable}` (environment)", f"`{option}`", "where it is set"]


def _said(flag: Flag) -> str:
    values = "; ".join(f"{value}: `{words}`" for value, words in flag.values.items() if words)
    taken = f"one of {', '.join(flag.values)}" if flag.values and not values and not flag.option else ""
    pattern = f"must be `{flag.pattern.replace('{}', '...')}`" if flag.pattern else ""
    locked = "the lock profile's" if flag.locked else ""
    return "; ".join(filter(None, (values, taken, pattern, locked, flag.note)))


if __name__ == "__main__":
    page = Path(sys.argv[1])
    write_text(page, renewed(page.read_text()))
