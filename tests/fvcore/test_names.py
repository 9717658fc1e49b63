"""Names that become parts of paths: whatever they are, what is joined lies where it was joined."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from fvcore import names
from fvcore.formats import FormatError

ELSEWHERE = [
    *("", ".", "..", "/", "/etc/passwd", "../x", "a/b", "a\\b", "..\\x", "a\0b", "a\nb", "\x1b[2J", "\u202ex"),
    *("\ud800", "x" * 300, "\u00e9" * 150, "~/../x/.."),
]


@pytest.mark.parametrize("name", ELSEWHERE)
def test_what_is_no_part_of_a_path_is_refused_or_written_otherwise(name: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"the dataset '.*cannot name a file or a folder") as told:
        names.part(name, "the dataset")
    assert "\n" not in str(told.value)

    (tmp_path / names.made(name)).write_text("x")
    (tmp_path / names.of_model(name)).write_text("x")

    assert all(path.is_file() for path in tmp_path.iterdir())
    assert names.is_part(names.made(name))


@pytest.mark.parametrize("name", ["Q1", "Q 1", "wiki: animals", "a.b", ".hidden", "-rf", "\u6c34", "x" * 200])
def test_what_is_one_stays_as_it_is(name: str) -> None:
    assert names.part(name, "x") == names.made(name) == name


def test_a_made_name_is_always_one_part() -> None:
    rng = random.Random(0)
    some = ["".join(chr(rng.choice((rng.randrange(64), rng.randrange(0x11000)))) for _ in range(n)) for n in range(300)]

    for name in some:
        made = names.made(name)
        assert names.is_part(made)
        assert names.made(made) == made
        assert Path("/root", made).parent == Path("/root")


@pytest.mark.parametrize(
    ("name", "fits"),
    [("Q1", True), ("Q 1", True), ("../x", False), (".x", False), ("_x", False), ("a/b", False), ("", False), ("a:b", False)],
)  # fmt: skip
def test_a_name_that_would_lie_elsewhere_names_no_folder(name: str, fits: bool) -> None:
    assert names.names_a_folder(name) is fits


def test_a_file_below_a_folder_may_have_several_parts(tmp_path: Path) -> None:
    assert names.below(tmp_path, "a/b.txt") == tmp_path / "a" / "b.txt"
    for name in ("..", "../x", "a/../../x", "/x", "a\0b"):
        with pytest.raises(FormatError, match="expected the name of a file below"):
            names.below(tmp_path, name)


def test_a_directory_is_named_by_itself_and_not_by_where_it_lies(tmp_path: Path) -> None:
    places = [tmp_path / owner / "model" for owner in ("one", "other")]
    for place in places:
        place.mkdir(parents=True)
    found = [names.of_model(str(place)) for place in places]
    assert found[0] != found[1]
    assert all(name.startswith("model_") and len(name) == len("model_") + 8 for name in found)
    assert names.of_model("org/name") == "org_name"
