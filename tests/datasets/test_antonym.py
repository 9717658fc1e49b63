"""Checks on the content and the format of the antonym data set."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest

DATA_FILE = Path(__file__).resolve().parents[2] / "datasets" / "antonym" / "raw" / "antonym.json"
WORD = re.compile(r"[a-z]+(-[a-z]+)*")


@pytest.fixture(scope="module")
def text() -> str:
    return DATA_FILE.read_bytes().decode("ascii")


@pytest.fixture(scope="module")
def rows(text: str) -> list[dict[str, str]]:
    data: list[dict[str, str]] = json.loads(text)
    return data


def test_format(text: str, rows: list[dict[str, str]]) -> None:
    assert json.dumps(rows, indent=2) == text


def test_fields(rows: list[dict[str, str]]) -> None:
    assert all(list(row) == ["input", "output"] for row in rows)


def test_words_are_single_and_lower_case(rows: list[dict[str, str]]) -> None:
    words = {word for row in rows for word in row.values()}
    assert sorted(word for word in words if not WORD.fullmatch(word)) == []


def test_no_word_is_its_own_antonym(rows: list[dict[str, str]]) -> None:
    assert [row for row in rows if row["input"] == row["output"]] == []


def test_every_input_has_one_output(rows: list[dict[str, str]]) -> None:
    counts = Counter(row["input"] for row in rows)
    assert [word for word, count in counts.items() if count > 1] == []


def test_no_duplicate_rows(rows: list[dict[str, str]]) -> None:
    assert len({(row["input"], row["output"]) for row in rows}) == len(rows)


def test_both_directions_are_present(rows: list[dict[str, str]]) -> None:
    forward = {(row["input"], row["output"]) for row in rows}
    backward = {(row["output"], row["input"]) for row in rows}
    assert forward == backward


def test_number_of_pairs(rows: list[dict[str, str]]) -> None:
    pairs = {frozenset(row.values()) for row in rows}
    assert len(pairs) >= 800
    assert len(rows) == 2 * len(pairs)
