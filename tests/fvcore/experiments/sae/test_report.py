"""The report of a run, and its picture: from made-up files, so that what must be seen is known."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path

import pytest

from tests.eyes import problems
from tests.late import RUNNING

if RUNNING:
    from fvcore.experiments.sae import report
    from fvcore.experiments.sae.drawing import BOX, MOST_EDGES, draw
    from fvcore.formats import FormatError
    from tests.fvcore.experiments.sae.made_up import HOSTILE, many, pathway, write


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("run")
    write(made, [*many(), pathway("L0-1", "L1-2", None, status="target_inactive", validated=False, q_value=None)])
    return made


def test_a_report_says_what_was_found_and_what_became_of_the_rest(root: Path) -> None:
    picture, markdown, page = report.write(root, ("md", "html"))

    found = many()
    n = sum(one.validated for one in found)
    for path in (markdown, page):
        text = path.read_text()
        assert f"{n} of {len(found) + 1} tested pathways" in text
        assert all(word in text for word in ("not specific", "target inactive") if path == page)
    assert problems(page.read_text()) == []
    assert ET.parse(picture).getroot().tag.endswith("svg")


def test_what_files_hold_is_text_and_nothing_else(root: Path) -> None:
    _, markdown, page = report.write(root, ("md", "html"))

    assert HOSTILE[:8] not in page.read_text()
    assert "&lt;script&gt;|\u23ce" in page.read_text()
    rows = [line for line in markdown.read_text().splitlines() if line.startswith("|")]
    assert {len(re.split(r"(?<!\\)\|", line)) for line in rows if "script" in line} <= {6 + 1, 5 + 2}


def test_without_pathways_there_is_no_report_and_with_none_validated_no_picture(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"validated_pathways\.json: no such file"):
        report.write(tmp_path, ("html",))
    write(tmp_path, [pathway("L0-1", "L1-2", 0.01, status="small_effect", validated=False)])
    (page,) = report.write(tmp_path, ("html",))
    assert "No pathway was validated" in page.read_text()


def test_layers_are_columns_and_no_box_lies_on_another() -> None:
    drawing = draw(many())

    columns = {box.layer: {other.x for other in drawing.boxes if other.layer == box.layer} for box in drawing.boxes}
    assert all(len(xs) == 1 for xs in columns.values())
    assert [x for (x,) in columns.values()] == sorted(x for (x,) in columns.values())
    for layer in columns:
        tops = sorted(box.y for box in drawing.boxes if box.layer == layer)
        assert all(later - earlier >= BOX[1] for earlier, later in pairwise(tops))


def test_a_line_is_as_wide_as_its_effect_and_its_sign_is_that_of_the_drive() -> None:
    edges = [
        pathway("L0-1", "L2-1", 0.5),
        pathway("L0-2", "L2-1", -0.25),
        pathway("L0-1", "L2-2", 0.1),
        pathway("L0-2", "L2-2", 0.3, status="not_specific", validated=False),
    ]
    lines = draw(edges).lines

    assert [line.sign for line in lines] == ["control", "up", "down", "up"]
    widths = [line.width for line in lines]
    assert widths == sorted(widths)
    assert "ablation changes it by -1 (50%)" in lines[-1].said


def test_an_edge_over_a_column_passes_beside_its_boxes() -> None:
    drawing = draw([pathway("L0-1", "L2-1", 0.5), pathway("L0-1", "L1-1", 0.4), pathway("L1-1", "L2-1", 0.3)])

    (between,) = [box for box in drawing.boxes if box.layer == 1]
    (level,) = re.findall(r"([\d.]+)H", drawing.lines[-1].path)
    assert not between.y <= float(level) <= between.y + BOX[1]


def test_of_many_edges_the_strongest_are_drawn_and_the_others_counted() -> None:
    edges = [pathway(f"L0-{at}", "L1-0", 0.1 + at / 1000) for at in range(MOST_EDGES + 7)]
    drawing = draw(edges)

    assert (len(drawing.lines), drawing.left_out) == (MOST_EDGES, 7)
    assert "L0-0" not in [box.name for box in drawing.boxes]
