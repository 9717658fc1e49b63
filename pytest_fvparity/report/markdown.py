"""Markdown within a budget of bytes: GitHub drops a step summary over 1 MiB, and a comment over 64 KiB, as a whole.

1. The text is split into blocks: a table (two lines of head, rows), a code fence (its marks, lines), any other line.
2. Blocks are kept from the start, so a document puts the worst first. A table or fence is cut between its rows, and
   keeps its head and its marks.
3. The last line counts what was cut.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

STEP_SUMMARY = 1024 * 1024
COMMENT = 64 * 1024
LEAST = 1000  # below this not even a headline and the note are sure to fit
FENCE = re.compile(r"(`{3,})[^`]*")


@dataclass(frozen=True)
class Block:
    """Rows that may be cut from the end, and the lines around them that they cannot do without."""

    rows: tuple[str, ...]
    head: tuple[str, ...] = ()
    tail: tuple[str, ...] = ()

    @property
    def n_rows(self) -> int:
        """Empty lines do not count."""
        return sum(map(bool, self.rows))


def size(text: str) -> int:
    """Bytes of a text as it is written; a lone surrogate is written as its escape."""
    return len(text.encode("utf-8", errors="backslashreplace"))


def cut(text: str, longest: int) -> str:
    """The text in at most so many characters."""
    return text if len(text) <= longest else text[: longest - 1] + "…"


def within(text: str, budget: int, whole: str) -> str:
    """The text if it fits, else what fits of it and a note that counts the rest; `whole` says where all of it is."""
    if budget < LEAST:
        raise ValueError(f"a budget of {budget} bytes: at least {LEAST} are needed")
    if size(text) <= budget:
        return text
    blocks = list(parse(text))
    shortened = [_shortened(block, budget // 4) for block in blocks]
    n_shortened = sum(old != new for old, new in zip(blocks, shortened, strict=True))
    longest = _note(budget, whole, blocks, [None] * len(blocks), n_shortened)
    kept = _fitting(shortened, budget - size(longest) - 2)
    lines = [line for block in kept if block for line in (*block.head, *block.rows, *block.tail)]
    return "\n".join([*lines, "", _note(budget, whole, blocks, kept, n_shortened)])


def parse(text: str) -> Iterator[Block]:
    lines, at = text.split("\n"), 0
    while at < len(lines):
        if fence := FENCE.fullmatch(lines[at]):
            closing = re.compile(f"`{{{len(fence[1])},}} *")
            end = next((i for i in range(at + 1, len(lines)) if closing.fullmatch(lines[i])), len(lines))
            yield Block(tuple(lines[at + 1 : end]), (lines[at],), (fence[1],))
            at = end + 1
        elif lines[at].startswith("|") and at + 1 < len(lines) and lines[at + 1].startswith("|-"):
            end = next((i for i in range(at, len(lines)) if not lines[i].startswith("|")), len(lines))
            yield Block(tuple(lines[at + 2 : end]), tuple(lines[at : at + 2]))
            at = end
        else:
            yield Block((lines[at],))
            at += 1


def _shortened(block: Block, longest: int) -> Block:
    """A single line has no rows to cut: an endless one loses its end."""
    if block.head or size(block.rows[0]) <= longest:
        return block
    start = block.rows[0].encode("utf-8", errors="backslashreplace")[: longest - size("…")]
    return Block((start.decode("utf-8", errors="ignore") + "…",))


def _fitting(blocks: Sequence[Block], room: int) -> list[Block | None]:
    """What fits of each block; of those behind the first that does not fit wholly, nothing."""
    kept: list[Block | None] = []
    for block in blocks:
        room -= sum(size(line) + 1 for line in (*block.head, *block.tail))
        costs = list(accumulate(size(row) + 1 for row in block.rows))
        n = sum(cost <= room for cost in costs)
        kept.append(None if room < 0 or (costs and not n) else replace(block, rows=block.rows[:n]))
        room = room - sum(costs[-1:]) if kept[-1] == block else 0
    return kept


def _note(budget: int, whole: str, blocks: Sequence[Block], kept: Sequence[Block | None], n_shortened: int) -> str:
    counts = []
    for of_tables in (True, False):
        # A table has a head and no tail.
        pairs = [(b, part) for b, part in zip(blocks, kept, strict=True) if (bool(b.head) and not b.tail) is of_tables]
        total, left = sum(b.n_rows for b, _ in pairs), sum(part.n_rows for _, part in pairs if part)
        counts.append(f"{total - left} of {total}")
    shorter = f", {n_shortened} line(s) shortened" if n_shortened else ""
    return (
        f"**Cut to stay within {budget} bytes: {counts[0]} table rows and {counts[1]} other lines left out{shorter}.** "
        f"{whole}"
    )
