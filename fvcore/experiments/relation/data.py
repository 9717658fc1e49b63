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
from typing import Any, TypeAlias

from fvcore import shipped
from fvcore.experiments.relation import files
from fvcore.experiments.steps.sampled import Draw, SampledMeta, SampledTrials, of_draws
from fvcore.formats import read_text, sha256, sha256_file
from fvcore.model.tokenizer import Tokenizer
from fvcore.names import names_a_folder
from fvcore.trials.draws import of_relation
from fvcore.trials.fixed import TrialsError, WordPair, portable

Q_NAMES = ("q", "id", "qid")
A_NAMES = ("exA", "ex_A", "ex_a", "input")
B_NAMES = ("exB", "ex_B", "ex_b", "output")

TAKEN = {files.OVERVIEW, files.REPORT}
"""What lies beside the folders of the q_ids."""

Pairs: TypeAlias = tuple[WordPair, ...]
"""Those of one q_id, in the file's order."""


class RelationError(TrialsError):
    """A relation file is not usable, or has not what is asked of it."""


@dataclass(frozen=True)
class Relation:
    """Pairs by q_id, in the file's order; q_ids are sorted as strings (Q1, Q10, Q2).

    dropped: line numbers of rows that lack a cell
    """

    path: Path
    pairs: dict[str, Pairs]
    dropped: tuple[int, ...]
    sha256: str

    @property
    def written(self) -> str:
        """Its path, as files of a run hold it."""
        return portable(self.path)

    def chosen(self, q_ids: Sequence[str] | None) -> list[str]:
        """The q_ids asked for, sorted as strings; all of them if None. Raises RelationError for one that is not there."""
        if q_ids is None:
            return list(self.pairs)
        if missing := [q_id for q_id in q_ids if q_id not in self.pairs]:
            raise RelationError(f"{self.path}: no q_id {missing[0]!r} (--q); there are {', '.join(self.pairs)}")
        if not q_ids:
            raise RelationError(f"{self.path}: no q_id asked for (--q); there are {', '.join(self.pairs)}")
        return sorted(set(q_ids))


def read(path: Path) -> Relation:
    """Read a relation file; cells are stripped, rows that lack one are dropped."""
    path = shipped.file(path)
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
        if not (q_id and word and answer):
            dropped.append(number)
            continue
        if q_id.lower() in TAKEN:
            raise RelationError(
                f"{path}: line {number}: q_id {q_id!r} is the name of a run's own file; call it otherwise"
            )
        if not names_a_folder(q_id):
            raise RelationError(
                f"{path}: line {number}: q_id {q_id!r} cannot name a folder; it must not begin with a dot or an underscore, "
                "nor hold a slash, a backslash, a colon or a line end"
            )
        pairs.setdefault(q_id, []).append(WordPair(input=word, output=answer))
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


def _columns(path: Path, header: list[str]) -> list[int]:
    """Where q_id, first and second word stand: by exact name, else without regard to case."""
    found, lower = [], [name.lower() for name in header]
    for names in (Q_NAMES, A_NAMES, B_NAMES):
        exact = [header.index(name) for name in names if name in header]
        places = exact or [lower.index(name.lower()) for name in names if name.lower() in lower]
        if not places:
            raise RelationError(f"relation CSV {path} must include q/id and exA/exB columns (found={header})")
        found.append(places[0])
    return found


def draw(pairs: Mapping[str, Sequence[WordPair]], n_trials: int, n_demos: int, seed: int) -> list[Draw]:
    """`n_trials` trials of each q_id, shuffled together. Queries are drawn with replacement, labels may stay in place."""
    rng, draws = random.Random(seed), []
    for q_id, rows in pairs.items():
        n = len(rows)
        if n < n_demos + 1:
            raise RelationError(f"q_id {q_id}: {n} rows; {n_demos} demonstrations and a query need {n_demos + 1}")
        for _ in range(n_trials):
            drawn = of_relation(rng, [row.output for row in rows], n_demos)
            demos = [(at, rows[at]) for at in drawn.demos]
            labels = [demos[i][1].output for i in drawn.label_order]
            draws.append(Draw.of(demos, labels, (drawn.query, rows[drawn.query]), q_id))
    rng.shuffle(draws)
    return draws


@dataclass(frozen=True, slots=True)
class RelationSource:
    """The trials of one q_id, for the production steps. `csv_path` is written down, and decides nothing."""

    q_id: str
    pairs: Pairs
    csv_path: str
    n_trials: int
    n_demos: int
    seed: int

    def settings(self) -> dict[str, Any]:
        chosen = {"n_trials_per_q": self.n_trials, "n_demos": self.n_demos, "seed": self.seed}
        of_pairs = sha256(json.dumps([[pair.input, pair.output] for pair in self.pairs]).encode())
        return {"source": "relation_csv", "q_id": self.q_id, "pairs_sha256": of_pairs} | chosen

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
