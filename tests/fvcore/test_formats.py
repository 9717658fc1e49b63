"""Reading and writing: whole files or none, and every error names its file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore import formats
from fvcore.formats import FormatError
from tests.late import RUNNING

if RUNNING:
    import torch


def everything_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# ---------------------------------------------------------------- atomic writes


def test_a_write_makes_its_folders_and_replaces_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "file.bin"
    formats.write_bytes(path, b"old, and longer")
    formats.write_bytes(path, b"new")
    assert everything_in(path.parent) == {"file.bin": b"new"}


@pytest.mark.parametrize("failing", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failing_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str, error: BaseException
) -> None:
    path = tmp_path / "file.json"
    formats.write_text(path, "old")

    def fail(*args: Any, **kwargs: Any) -> None:
        raise error

    monkeypatch.setattr(*((os, "fsync") if failing == "fsync" else (Path, failing)), fail)
    with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else formats.WriteError) as told:
        formats.write_text(path, "new")
    assert everything_in(tmp_path) == {"file.json": b"old"}
    if isinstance(error, OSError):
        assert str(told.value) == f"{path}: cannot be written (disk full)"
        assert told.value.__cause__ is error


def test_a_reader_never_sees_a_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = tmp_path / "file.bin", []
    formats.write_bytes(path, b"old")
    fsync = os.fsync

    def look(descriptor: int) -> None:
        seen.append(path.read_bytes())
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    formats.write_bytes(path, b"new" * 10_000)
    assert seen == [b"old"]
    assert path.read_bytes() == b"new" * 10_000


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600), (0o002, 0o664)])
def test_a_written_file_has_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        formats.write_bytes(tmp_path / "file", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == mode


@pytest.mark.parametrize(
    "name, reason",
    [
        ("file/below", "File exists"),
        ("x" * 300, "File name too long"),
        ("a\0b", "embedded null byte"),
        ("folder", "Is a directory"),
    ],
)
def test_what_cannot_be_written_is_one_sentence_that_names_it(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "file").write_text("old")
    (tmp_path / "folder" / "inside").mkdir(parents=True)

    with pytest.raises(formats.WriteError, match=rf"cannot be (written|made) \({reason}\)$") as told:
        formats.write_text(tmp_path / name, "new")

    assert str(told.value).startswith(f"{tmp_path / name.removesuffix('/below')}: ")
    assert not list(tmp_path.glob(".*"))


def test_a_name_as_long_as_may_be_is_written(tmp_path: Path) -> None:
    formats.write_text(tmp_path / ("\u00e9" * 127), "x")

    assert len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------- JSON, YAML, CSV


def test_json_is_indented_ascii_without_a_final_newline(tmp_path: Path) -> None:
    formats.write_json(tmp_path / "a.json", {"b": ["\u00e9", 1.5], "a": None})
    expected = b'{\n  "b": [\n    "\\u00e9",\n    1.5\n  ],\n  "a": null\n}'
    assert (tmp_path / "a.json").read_bytes() == expected
    assert formats.read_json(tmp_path / "a.json") == {"b": ["\u00e9", 1.5], "a": None}


@pytest.mark.parametrize("value", [math.nan, math.inf, [1, -math.inf], {"a": {"b": math.nan}}])
def test_json_has_no_nan_and_the_old_file_stays(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "a.json"
    formats.write_json(path, 1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        formats.write_json(path, value)
    assert everything_in(tmp_path) == {"a.json": b"1"}


def test_csv_has_the_default_dialect_full_precision_and_empty_for_none() -> None:
    rows = [{"a": 0.1 + 0.2, "b": True, "c": None}, {"a": 1e-05, "b": 'x,"y"', "c": 3}]
    assert formats.csv_text(["c", "a", "b"], rows) == ('c,a,b\r\n,0.30000000000000004,True\r\n3,1e-05,"x,""y"""\r\n')


def test_csv_is_written_without_another_line_ending(tmp_path: Path) -> None:
    formats.write_csv(tmp_path / "a.csv", ["a"], [{"a": 1}])
    assert (tmp_path / "a.csv").read_bytes() == b"a\r\n1\r\n"


def test_csv_refuses_a_column_that_was_not_announced() -> None:
    with pytest.raises(ValueError, match="'b'"):
        formats.csv_text(["a"], [{"a": 1, "b": 2}])


# ---------------------------------------------------------------- errors

READERS: list[Callable[[Path], Any]] = [
    formats.read_bytes,
    formats.read_text,
    formats.read_json,
    formats.read_yaml,
    formats.read_safetensors,
    formats.sha256_file,
]


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_the_missing_file(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    with pytest.raises(FormatError, match=r"^/.*nowhere\.x: no such file$"):
        reader(tmp_path / "nowhere.x")


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_what_is_no_file(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, kind in ((tmp_path, "folder"), (tmp_path / "pipe", "pipe"), (Path("/dev/zero"), "device")):
        with pytest.raises(FormatError, match=f"^{path}: expected a regular file, found a {kind}$"):
            reader(path)


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_names_what_no_path_may_be(tmp_path: Path, reader: Callable[[Path], Any]) -> None:
    for name, reason in (("a\0b", "null"), ("x" * 300, "too long")):
        with pytest.raises(FormatError, match=rf"cannot be read \(.*{reason}.*\)$"):
            reader(tmp_path / name)


def test_a_file_that_no_memory_holds_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(2**40)

    with pytest.raises(FormatError, match=f"has {2**40} bytes; at most"):
        formats.read_bytes(tmp_path / "file")


LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12))


@pytest.mark.parametrize(
    "text, reason",
    [
        (LAUGHS, "its aliases stand for more than"),
        (MERGES, "its aliases stand for more than"),
        ("a: &a [*a]", "nested deeper than 64 levels"),
        ("a: &a {<<: *a}", "nested deeper than 64 levels"),
        ("? &a [*a]\n: 1", "nested deeper than 64 levels"),
        ("".join(f"key_of_some_length_{i}: {i}\n" for i in range(60_000)), "characters; at most"),
    ],
)
def test_yaml_that_is_small_and_stands_for_much_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.yaml").write_text(text)

    with pytest.raises(FormatError, match=f"not valid YAML .*{reason}"):
        formats.read_yaml(tmp_path / "a.yaml")


def test_a_line_of_json_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n{"a": "\u2028"}\n{"a": NaN}\n')

    with pytest.raises(FormatError, match=r"a\.jsonl, line 3: not valid JSON \(NaN is no finite number\)"):
        formats.read_jsonl(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("reader", "data", "message"),
    [
        (formats.read_text, b"ab\xff", r"not UTF-8 text \(byte 2\)"),
        (formats.read_json, b'{"a": 1,\n}', r"not valid JSON \(line 2, column 1"),
        (formats.read_json, b"", "not valid JSON"),
        (formats.read_yaml, b"a: [1", "not valid YAML"),
        (
            formats.read_yaml,
            b"a: 1\nb: {a: 2, a: 3}",
            r"not valid YAML \(key 'a' stands twice in one mapping, line 2\)",
        ),
        (formats.read_yaml, b"a: 2001-99-99", "not valid YAML"),
        (formats.read_yaml, b"[" * 70 + b"]" * 70, "nested deeper than 64 levels"),
        (formats.read_yaml, b"[" * 9000, "nested deeper than 64 levels"),
        (formats.read_yaml, b"!!python/object/apply:os.getcwd []", "not valid YAML"),
        (formats.read_safetensors, b"", "not a whole safetensors file"),
        (formats.read_safetensors, b"\x80\x04not a pickle either", "not a whole safetensors file"),
    ],
)
def test_a_broken_file_is_named_with_its_fault(
    tmp_path: Path, reader: Callable[[Path], Any], data: bytes, message: str
) -> None:
    path = tmp_path / "broken.x"
    path.write_bytes(data)
    with pytest.raises(FormatError, match=message) as error:
        reader(path)
    assert str(error.value).startswith(f"{path}: ")


def test_yaml_scalars_are_text_on_request(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("{a: 010, b: on, c: 1:30, d: ~, e: 1.5}")

    assert formats.read_yaml(path) == {"a": 8, "b": True, "c": 90, "d": None, "e": 1.5}
    assert formats.read_yaml(path, as_text=True) == {"a": "010", "b": "on", "c": "1:30", "d": "~", "e": "1.5"}


def test_a_yaml_mapping_may_take_over_from_another(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}")

    assert formats.read_yaml(path)["b"] == {"x": 3, "y": 2}


def test_truncated_tensors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    formats.write_safetensors(path, {"a": torch.ones(100)})
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(FormatError, match=r"a\.safetensors: not a whole safetensors file"):
        formats.read_safetensors(path)


# ---------------------------------------------------------------- tensors and digests


def test_tensor_bytes_depend_on_names_and_values_alone(tmp_path: Path) -> None:
    a, b = torch.arange(6.0).reshape(2, 3), torch.ones(2, dtype=torch.float16)
    formats.write_safetensors(tmp_path / "one", {"a": a, "b": b})
    formats.write_safetensors(tmp_path / "two", {"b": b.clone(), "a": a.T.contiguous().T.requires_grad_()})
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    back = formats.read_safetensors(tmp_path / "two")
    assert torch.equal(back["a"], a)
    assert torch.equal(back["b"], b)


def test_two_names_of_one_tensor_are_two_tensors(tmp_path: Path) -> None:
    shared = torch.arange(4.0)
    formats.write_safetensors(tmp_path / "a", {"x": shared, "y": shared, "z": shared[1:3]})
    back = formats.read_safetensors(tmp_path / "a")
    assert (back["x"].tolist(), back["y"].tolist(), back["z"].tolist()) == ([0, 1, 2, 3], [0, 1, 2, 3], [1, 2])


def test_a_digest_is_the_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert formats.sha256_file(tmp_path / "a") == formats.sha256(b"abc") == known


def test_json_text_is_what_json_itself_reads() -> None:
    value = {"a": [1, 2.5, "x", None, True]}
    assert json.loads(formats.json_text(value)) == value


def test_an_error_can_be_printed_whatever_the_file_holds() -> None:
    error = FormatError("leaf is described as \udfff\ud800, found float32")

    assert str(error) == "leaf is described as \\udfff\\ud800, found float32"
    assert str(error).encode()


def test_what_stands_beside_tensors_comes_back_and_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    import torch

    about = {name: name * 2 for name in ("model", "positions", "dtype", "source", "kept")}
    files = [tmp_path / f"{n}.safetensors" for n in range(4)]
    for path in files:
        formats.write_safetensors(path, {"k": torch.arange(3)}, about)

    assert formats.safetensors_metadata(files[0]) == about
    assert len({path.read_bytes() for path in files}) == 1
    formats.write_safetensors(files[0], {"k": torch.arange(3)})
    assert formats.safetensors_metadata(files[0]) == {}
    files[0].write_bytes(b"\x08\0\0\0\0\0\0\0nonsense")
    with pytest.raises(FormatError, match="not a whole safetensors file"):
        formats.safetensors_metadata(files[0])


def test_the_root_of_results_ignores_itself_where_it_is_made_here(tmp_path: Path) -> None:
    (tmp_path / "own" / "reports").mkdir(parents=True)
    formats.write_text(tmp_path / "own" / "reports" / "deep" / "a.txt", "a")
    formats.write_text(tmp_path / "new" / "reports" / "deep" / "a.txt", "a")

    assert (tmp_path / "new" / "reports" / ".gitignore").read_text() == "*\n"
    assert not (tmp_path / "own" / "reports" / ".gitignore").exists()  # somebody's own folder of that name
