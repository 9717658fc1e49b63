"""Every fault on every family it concerns, and the table, in words: for the terminal and for `docs/faults.md`."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from pytest_fvparity.report.render import environment
from pytest_fvparity.selftest.catalogue import Fault, Observed, Outcome, faults_of
from pytest_fvparity.selftest.faults import activations, effects, injection, prompts, sampling, slots, suite, vectors
from pytest_fvparity.selftest.rig import rig_of

ROOMS = (prompts, sampling, slots, activations, effects, vectors, injection, suite)

VERDICTS = ("caught", "not run here", "wrong key", "missed")  # from good to bad
COUNTED = ("caught", "wrong key", "missed", "not run here")
N_FAULTS = 75  # F01 to F75


@dataclass(frozen=True)
class Row:
    """One fault and what was seen of it, family by family."""

    fault: Fault
    seen: dict[str, Observed]

    @property
    def verdict(self) -> str:
        """caught, wrong key, missed, or not run here: the worst of all families."""
        return max((self._verdict(seen) for seen in self.seen.values()), key=VERDICTS.index)

    def _verdict(self, seen: Observed) -> str:
        if seen.outcome is Outcome.NOT_RUN:
            return "not run here"
        if self.fault.met(seen):
            return "caught"
        return "missed" if seen.outcome is Outcome.PASSES else "wrong key"

    @property
    def seen_words(self) -> str:
        """What was seen, in one phrase if all families agree."""
        families: dict[str, list[str]] = {}
        for family, seen in self.seen.items():
            families.setdefault(str(seen), []).append(family)
        if len(families) <= 1:
            return "".join(families) or "–"
        return "; ".join(f"{words} ({', '.join(names)})" for words, names in families.items())


def catalogue() -> dict[str, Fault]:
    """All faults by id, in order."""
    return faults_of({id: plants for room in ROOMS for id, plants in room.PLANTS.items()})


def rows(ids: Sequence[str] = (), began: Callable[[Fault], None] | None = None) -> Iterator[Row]:
    """Run the faults of the catalogue, or some of them by id."""
    known = catalogue()
    for id in ids or known:
        if id not in known:
            raise KeyError(f"no fault {id} in the catalogue; known: {', '.join(known)}")
        fault = known[id]
        if began:
            began(fault)
        yield Row(fault, {family: fault.observe(rig_of(family)) for family in fault.families})


def counted(rows: Sequence[Row]) -> str:
    """The last line: `96 caught, 0 wrong key, 1 missed, 2 not run here`."""
    return ", ".join(f"{sum(row.verdict == verdict for row in rows)} {verdict}" for verdict in COUNTED)


def red(rows: Sequence[Row]) -> bool:
    return any(row.verdict in {"wrong key", "missed"} for row in rows)


def absent(ids: Collection[str]) -> list[str]:
    """Numbers of which the catalogue has no fault; `F33-nf4` is a variant of F33."""
    numbers = {id.partition("-")[0] for id in ids}
    return [number for number in (f"F{n:02}" for n in range(1, N_FAULTS + 1)) if number not in numbers]


def faults_markdown(rows: Sequence[Row], catalogue: Collection[str]) -> str:
    """The page: the same bytes wherever the same is seen."""
    return (
        environment()
        .get_template("faults.md.j2")
        .render(
            rows=rows,
            counted=counted(rows),
            absent=absent(catalogue),
            selected=None if len(rows) == len(catalogue) else len(catalogue),
        )
    )
