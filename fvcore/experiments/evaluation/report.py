"""What an evaluation found, as files: `evaluation.json`, a CSV a table, and plots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field

from fvcore.experiments.evaluation.results import Record, Result
from fvcore.formats import FormatError, json_text, read_json, validated, write_csv, write_text

SCHEMA_VERSION = 1
FILE = "evaluation.json"


class TaskFacts(Record):
    name: str
    file: str
    sha256: str
    split: str
    n_train: int
    n_questions: int


class ModelFacts(Record):
    name: str
    weights_sha: str
    tokenizer_sha: str
    dtype: str
    device: str
    attn_implementation: str
    engine: str
    versions: dict[str, str]


class VectorFacts(Record):
    """A vector that was injected: where it came from, and its Euclidean length."""

    name: str
    source: str
    norm: float


class Asked(Record):
    """What was asked for. `edit_layer` is a block; `filtered` whether wrong answers of the clean run were left out."""

    n_shots: list[int]
    edit_layer: int
    seed: int
    test_split: float
    filtered: bool
    alpha: float
    reference_profile: str


class TokenRow(Record):
    """A token that a vector raises; `way` as in `decoding.py`, `rank` from 0."""

    vector: str
    way: str
    rank: int
    token_id: int
    text: str
    logit: float
    probability: float
    is_answer: bool


class Portable(Record):
    template: str
    baseline: Result
    kept: list[int]
    with_vectors: list[Result]


class Report(Record):
    """Everything, with the answers question by question; tables are empty for what was not asked."""

    schema_version: int = SCHEMA_VERSION
    task: TaskFacts
    model: ModelFacts
    asked: Asked
    vectors: list[VectorFacts]
    kept: list[int] | None = None
    baseline: list[Result] = Field(default_factory=list)
    nshot: list[Result] = Field(default_factory=list)
    layers: list[Result] = Field(default_factory=list)
    tokens: list[TokenRow] = Field(default_factory=list)
    portability: list[Portable] = Field(default_factory=list)

    @property
    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """By name, those that have rows."""
        ported = [result for port in self.portability for result in (port.baseline, *port.with_vectors)]
        conditions = {"baseline": self.baseline, "nshot": self.nshot, "layers": self.layers, "portability": ported}
        tables = {name: [result.row for result in results] for name, results in conditions.items()}
        tables["tokens"] = [row.model_dump() for row in self.tokens]
        return {name: rows for name, rows in tables.items() if rows}


def write(report: Report, folder: Path) -> list[Path]:
    """Write the JSON and a CSV a table; returns the files written."""
    written = [folder / FILE]
    write_text(written[0], json_text(report.model_dump(mode="json")))
    for name, rows in report.tables.items():
        path = folder / f"{name}.csv"
        write_csv(path, list(rows[0]), rows)
        written.append(path)
    return written


def read(path: Path) -> Report:
    """Read `evaluation.json`, or the one in a folder."""
    path = path / FILE if path.is_dir() else path
    value = read_json(path)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        raise FormatError(f"{path}: expected an evaluation of schema version {SCHEMA_VERSION}, found {version!r}")
    return validated(Report, value, path)


def title(result: Result) -> str:
    """A condition in words."""
    shots = "zero-shot" if result.n_shots == 0 else f"{result.n_shots}-shot, {result.labels} labels"
    return shots if result.vector is None else f"{shots}, + {result.vector}"
