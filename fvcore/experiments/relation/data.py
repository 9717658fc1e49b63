"""A relation file: a CSV of word pairs, several to a q_id, and each q_id a relation of its own; and trials drawn from it.

Which rows are asked and shown in each trial follows from the draws of the format, which any rewrite must repeat: one
generator serves all q_ids of a call, in the order given, and its last draw shuffles all trials. A run draws each q_id by
itself, so every q_id begins with the same seed.
"""

import csv
import io
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fvcore.experiments.folder import names_a_folder
from fvcore.experiments.steps.sampled import Draw, SampledMeta, SampledTrials, of_draws
from fvcore.formats import read_text, sha256, sha256_file
from fvcore.model.tokenizer import Tokenizer
from fvcore.trials.fixed import TrialsError, WordPair

Q_NAMES = ("q", "id", "qid")
A_NAMES = ("exA", "ex_A", "ex_a", "input")
B_NAMES = ("exB", "ex_B", "ex_b", "output")


class RelationError(TrialsError):
    """A relation file is not usable, or has not what is asked of it."""


@dataclass(frozen=True)
class Relation:
    """Pairs by q_id, in the file's order; q_ids are sorted as strings (Q1, Q10, Q2).

    dropped: line numbers of rows that lack a cell
    """

    path: Path
    pairs: dict[str, tuple[WordPair, ...]]
    dropped: tuple[int, ...]
    sha256: str

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def q_ids(self) -> list[str]:
        return list(self.pairs)

    def chosen(self, q_ids: Sequence[str] | None) -> list[str]:
        """The q_ids asked for, sorted as strings; all of them if None. Raises RelationError for one that is not there."""
        if q_ids is None:
            return self.q_ids
        if missing := [q_id for q_id in q_ids if q_id not in self.pairs]:
            raise RelationError(f"{self.path}: no q_id {missing[0]!r} (--q); there are {', '.join(self.q_ids)}")
        if not q_ids:
            raise RelationError(f"{self.path}: no q_id asked for (--q); there are {', '.join(self.q_ids)}")
        return sorted(set(q_ids))


def read(path: Path) -> Relation:
    """Read a relation file; cells are stripped, rows that lack one are dropped."""
    if not path.is_file():
        raise RelationError(f"relation CSV not found: {path}")
    lines = _lines(path)
    _, header = next(lines, (0, []))
    if not any(header):
        raise RelationError(f"{path}: missing header row")
    columns = _columns(path, header)
    pairs: dict[str, list[WordPair]] = {}
    dropped = []
    for number, cells in lines:
        if any(cells[len(header) :]):
            raise RelationError(
                f"{path}: line {number} has {len(cells)} cells, the header has {len(header)}; quote a cell that holds a comma"
            )
        q_id, word, answer = (cells[at] if at < len(cells) else "" for at in columns)
        if q_id and word and answer:
            pairs.setdefault(_folder_name(path, number, q_id), []).append(WordPair(input=word, output=answer))
        else:
            dropped.append(number)
    if not pairs:
        raise RelationError(f"{path}: holds no row with a q_id and both words")
    found = {q_id: tuple(pairs[q_id]) for q_id in sorted(pairs)}
    return Relation(path, found, tuple(dropped), sha256_file(path))


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and stripped cells; a line without any text is none."""
    # What a spreadsheet program puts in front of UTF-8 is no part of the first column's name.
    reader = csv.reader(io.StringIO(read_text(path).removeprefix("\ufeff"), newline=""), strict=True)
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells) or (reader.line_num == 1 and row):
                yield reader.line_num, cells
    except csv.Error as error:
        raise RelationError(f"{path}: not valid CSV, line {reader.line_num} ({error})") from None


def _columns(path: Path, header: Sequence[str]) -> tuple[int, int, int]:
    """Where q_id, first and second word stand: by exact name, else without regard to case."""
    found = [_column(header, names) for names in (Q_NAMES, A_NAMES, B_NAMES)]
    if None in found:
        raise RelationError(f"relation CSV {path} must include q/id and exA/exB columns (found={list(header)})")
    q_id, word, answer = (at for at in found if at is not None)
    return q_id, word, answer


def _column(header: Sequence[str], names: Sequence[str]) -> int | None:
    for wanted, there in ((names, header), ([n.lower() for n in names], [h.lower() for h in header])):
        for name in wanted:
            if name in there:
                return there.index(name)
    return None


def _folder_name(path: Path, number: int, q_id: str) -> str:
    """A q_id names a folder; one that would lie elsewhere, or be taken for one of the run's own, is refused."""
    if not names_a_folder(q_id):
        raise RelationError(
            f"{path}: line {number}: q_id {q_id!r} cannot name a folder; it must not begin with a dot or an underscore, nor "
            "hold a slash, a backslash, a colon or a line end"
        )
    return q_id


def draw(pairs: Mapping[str, Sequence[WordPair]], n_trials: int, n_demos: int, seed: int) -> list[Draw]:
    """`n_trials` trials of each q_id, shuffled together. Queries are drawn with replacement, labels may stay in place."""
    rng = random.Random(seed)
    draws = [_draw(rng, q_id, rows, n_demos) for q_id, rows in pairs.items() for _ in range(n_trials)]
    rng.shuffle(draws)
    return draws


def _draw(rng: random.Random, q_id: str, rows: Sequence[WordPair], n_demos: int) -> Draw:
    if len(rows) < n_demos + 1:
        raise RelationError(f"q_id {q_id}: {len(rows)} rows; {n_demos} demonstrations and a query need {n_demos + 1}")
    query = rng.randrange(len(rows))
    others = [(at, row) for at, row in enumerate(rows) if at != query]
    rng.shuffle(others)
    demos = others[:n_demos]
    clean = [row.output for _, row in demos]
    moved = list(clean)
    rng.shuffle(moved)
    if moved == clean and len(clean) > 1:
        rng.shuffle(moved)
    return Draw.of(demos, moved, (query, rows[query]), q_id)


@dataclass(frozen=True, slots=True)
class RelationSource:
    """The trials of one q_id, for the production steps. `csv_path` is written down, and decides nothing."""

    q_id: str
    pairs: tuple[WordPair, ...]
    csv_path: str
    n_trials: int
    n_demos: int
    seed: int

    def settings(self) -> dict[str, Any]:
        chosen = {"n_trials_per_q": self.n_trials, "n_demos": self.n_demos, "seed": self.seed}
        return {"source": "relation_csv", "q_id": self.q_id, "pairs_sha256": pairs_sha256(self.pairs)} | chosen

    def sample(self, tokenizer: Tokenizer) -> SampledTrials:
        meta = SampledMeta(
            source="relation_csv",
            relation_csv_path=self.csv_path,
            seed=self.seed,
            n_trials=self.n_trials,
            n_shots=self.n_demos,
            n_demos=self.n_demos,
        )
        return of_draws(draw({self.q_id: self.pairs}, self.n_trials, self.n_demos, self.seed), tokenizer, meta)


def pairs_sha256(pairs: Sequence[WordPair]) -> str:
    return sha256(json.dumps([[pair.input, pair.output] for pair in pairs]).encode())
