"""Reading a relation file: names of columns, rows that count, and what is said of one that cannot be read."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest

from fvcore.experiments.relation import data
from fvcore.experiments.relation.data import RelationError
from fvcore.formats import write_bytes


def _read(tmp_path: Path, text: str) -> data.Relation:
    write_bytes(tmp_path / "r.csv", text.encode())
    return data.read(tmp_path / "r.csv")


def _pairs(relation: data.Relation) -> dict[str, list[tuple[str, str]]]:
    return {q_id: [(pair.input, pair.output) for pair in pairs] for q_id, pairs in relation.pairs.items()}


def test_every_header_variant_names_the_same_columns(tmp_path: Path) -> None:
    q_ids = ("q", "id", "qid", "QID", " Id ")
    words = (("exA", "exB"), ("ex_A", "ex_B"), ("ex_a", "ex_b"), ("input", "output"), ("EXA", "Output"))
    for q, (a, b), end in product(q_ids, words, ("\n", "\r\n")):
        found = _read(tmp_path, f"{b},{q},note,{a}{end}cold,Q1,x,hot{end}")

        assert _pairs(found) == {"Q1": [("hot", "cold")]}, (q, a, b, end)


def test_an_exact_name_goes_before_one_in_another_case(tmp_path: Path) -> None:
    found = _read(tmp_path, "ID,id,exA,exB\nwrong,Q1,hot,cold\n")

    assert list(found.pairs) == ["Q1"]


def test_an_earlier_name_goes_before_a_later_one(tmp_path: Path) -> None:
    found = _read(tmp_path, "id,q,exA,ex_A,exB\nwrong,Q1,hot,wrong,cold\n")

    assert _pairs(found) == {"Q1": [("hot", "cold")]}


def test_cells_are_stripped_and_rows_that_lack_one_are_dropped_in_order(tmp_path: Path) -> None:
    text = "id,ex_A,ex_B\nQ2, hot , cold\n,a,b\nQ2,,b\nQ2,a,  \nQ2,a\n\nQ1,x,y\nQ2,big,small\n"

    found = _read(tmp_path, text)

    assert _pairs(found) == {"Q1": [("x", "y")], "Q2": [("hot", "cold"), ("big", "small")]}
    assert found.dropped == (3, 4, 5, 6)  # by which the file itself counts its lines


def test_q_ids_are_sorted_as_strings(tmp_path: Path) -> None:
    rows = "".join(f"{q_id},a,b\n" for q_id in ("Q2", "Q11", "Q1", "Q10"))

    assert list(_read(tmp_path, f"id,ex_A,ex_B\n{rows}").pairs) == ["Q1", "Q10", "Q11", "Q2"]


def test_a_mark_that_a_spreadsheet_puts_first_is_no_part_of_a_name(tmp_path: Path) -> None:
    assert list(_read(tmp_path, "\ufeffid,ex_A,ex_B\nQ1,a,b\n").pairs) == ["Q1"]


def test_a_quoted_cell_may_hold_a_comma_and_a_bare_one_may_not(tmp_path: Path) -> None:
    assert _pairs(_read(tmp_path, 'id,ex_A,ex_B\nQ1,"a, b",c\n')) == {"Q1": [("a, b", "c")]}
    with pytest.raises(RelationError, match="line 2 has 4 cells, the header has 3; quote"):
        _read(tmp_path, "id,ex_A,ex_B\nQ1,a, b,c\n")


def test_a_comma_behind_the_last_cell_is_no_cell(tmp_path: Path) -> None:
    assert _pairs(_read(tmp_path, "id,ex_A,ex_B\nQ1,a,b,\n")) == {"Q1": [("a", "b")]}


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RelationError, match=r"relation CSV not found: .*none\.csv"):
        data.read(tmp_path / "none.csv")


@pytest.mark.parametrize("text", ["", "\n", ",,\nQ1,a,b\n"])
def test_a_file_without_a_header_row_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(RelationError, match="missing header row"):
        _read(tmp_path, text)


def test_columns_that_are_missing_are_listed_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(RelationError) as error:
        _read(tmp_path, "id,word,ex_B\nQ1,a,b\n")

    assert "must include q/id and exA/exB columns (found=['id', 'word', 'ex_B'])" in str(error.value)


def test_a_file_without_a_whole_row_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RelationError, match="holds no row"):
        _read(tmp_path, "id,ex_A,ex_B\nQ1,a,\n")


@pytest.mark.parametrize("q_id", ["../up", "a/b", "a\\b", ".hidden", "_status", "c:d"])
def test_a_q_id_that_would_lie_elsewhere_is_refused(tmp_path: Path, q_id: str) -> None:
    with pytest.raises(RelationError, match="cannot name a folder"):
        _read(tmp_path, f"id,ex_A,ex_B\n{q_id},a,b\n")


def test_a_q_id_that_is_not_there_is_refused_with_those_that_are(tmp_path: Path) -> None:
    found = _read(tmp_path, "id,ex_A,ex_B\nQ1,a,b\nQ2,a,b\n")

    assert found.chosen(["Q2", "Q1", "Q2"]) == ["Q1", "Q2"]
    with pytest.raises(RelationError, match=r"no q_id 'Q9' .* there are Q1, Q2"):
        found.chosen(["Q9"])
