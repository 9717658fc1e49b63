"""A folder's files, and one writer a folder: a second is refused with the first one's name, and a killed one holds nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fvcore.experiments.errors import FolderInUse
from fvcore.experiments.folder import Folder, locked
from fvcore.formats import FormatError, read_csv, read_jsonl, read_text

HOLD = "import sys; from pathlib import Path; from fvcore.experiments.folder import locked\n"
HOLD += "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes in the folder."""
    words = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with (
        pytest.raises(FolderInUse, match=rf"run is being written by process {holder.pid} on "),
        locked(tmp_path / "run"),
    ):
        raise AssertionError("not reached")


def test_a_killed_writer_holds_nothing(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()

    with locked(tmp_path / "run"):
        assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert list((tmp_path / "run").iterdir()) == []


def test_a_folder_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        _ = 1 / 0
    with locked(tmp_path), pytest.raises(FolderInUse), locked(tmp_path):
        raise AssertionError("not reached")


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "a\0b"])
def test_a_folder_has_no_file_that_lies_elsewhere(tmp_path: Path, name: str) -> None:
    folder = Folder(tmp_path / "run")
    (tmp_path / "x").write_text("not of this run")

    for use in (lambda: folder / name, lambda: folder.digests([name]), lambda: folder.write({f"{name}.log": "x"})):
        with pytest.raises(FormatError, match="expected the name of a file below"):
            use()


def test_each_file_of_a_table_is_written_as_its_suffix_says(tmp_path: Path) -> None:
    folder, rows = Folder(tmp_path), [{"layer": 0, "head": 1}, {"layer": 1, "head": 0}]

    written = folder.write({"a/b.csv": rows, "rows.jsonl": rows, "run.log": "done\n"})

    assert written == [tmp_path / "a" / "b.csv", tmp_path / "rows.jsonl", tmp_path / "run.log"]
    assert read_csv(written[0])[0] == ["layer", "head"]
    assert read_jsonl(written[1]) == rows
    assert read_text(written[2]) == "done\n"


def test_digests_are_of_the_files_that_are_there(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.write({"x.log": "x"})

    assert list(folder.digests(["x.log", "gone.log"])) == ["x.log"]
