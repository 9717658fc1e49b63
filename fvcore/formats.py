"""The only reader and writer of bytes. Every file is written whole or not at all.

A write goes to a temporary file in the target's own folder, is flushed to disk, and takes the target's
name in one step, so that a crash leaves either the old file or the new one. Every reader names the file
in its error. Pickles are read with `weights_only` alone.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import re
import secrets
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from fvcore.exits import Expected, in_one_line, system_words

if TYPE_CHECKING:
    from pydantic import ValidationError
    from torch import Tensor
    from yaml import SafeLoader

Valid = TypeVar("Valid")


class FormatError(Expected):
    """A file is missing, truncated or not what its name says. Its text can be printed, whatever the file holds."""

    def __init__(self, text: str) -> None:
        super().__init__(text.encode(errors="backslashreplace").decode())


def validated(
    kind: type[Valid], value: Any, source: Path | str, what: str = "", raises: type[FormatError] = FormatError
) -> Valid:
    """`value` as a pydantic model, or a list of one; raises an error that says of which source, `what` it is not, and why."""
    from pydantic import TypeAdapter, ValidationError

    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        told = sentence(error)
        raise raises(f"{source}: not {what} ({told})" if what else f"{source}: {told}") from None


def sentence(error: ValidationError, most: int = 1, named: Callable[[str], str] | None = None) -> str:
    """What pydantic found wrong, in words: the first problems, each with its place, what was expected and found.

    named: a key's path -> how the user knows it; without it the path is that of an entry and a key of a file
    """
    return "; ".join(_problem(row, named) for row in error.errors()[:most])


def _problem(row: Any, named: Callable[[str], str] | None) -> str:
    entry, key = _place(list(row["loc"])) if named is None else ("", ".".join(map(str, row["loc"])))
    where = "the top level" if not key else named(key) if named else f"key {key!r:.200}"
    if row["type"] in {"missing", "extra_forbidden"}:
        return f"{entry}{'missing' if row['type'] == 'missing' else 'unknown'} {where}"
    message = row["msg"].removeprefix("Value error, ")
    return f"{entry}{where}: {message[:1].lower()}{message[1:]} (found {row['input']!r:.80})"


def _place(location: list[Any]) -> tuple[str, str]:
    """The entry of a list that a file is made of, `trial 3: ` of trials, and the key in it."""
    entry = ""
    if len(location) > 1 and isinstance(location[1], int):
        entry, location = f"{str(location[0]).removesuffix('s')} {location[1]}: ", location[2:]
    elif location and isinstance(location[0], int):
        entry, location = f"entry {location[0]}: ", location[1:]
    return entry, ".".join(map(str, location))


def parting(one: str, other: str) -> int:
    """Where two texts part: their first different character, or the end of the shorter one."""
    shorter = min(len(one), len(other))
    return next((at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), shorter)


MOST_BYTES = 2**34
"""Of a file that is read as a whole."""

KINDS = {"DIR": "a folder", "FIFO": "a pipe", "CHR": "a device", "BLK": "a device", "SOCK": "a socket"}


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A regular file, to read; raises FormatError for one that is not there, and for what may have no end."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            found = next((said for kind, said in KINDS.items() if getattr(stat, f"S_IS{kind}")(mode)), "something else")
            raise FormatError(f"{path}: expected a regular file, found {found}")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # a path with a NUL in it is a wrong value
        raise FormatError(f"{path!s:.1000}: cannot be read ({system_words(error)})") from error


def read_bytes(path: Path, n_bytes: int | None = None, most: int = MOST_BYTES) -> bytes:
    """The bytes of a regular file; the first `n_bytes` of it, or all where they are no more than `most`."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if n_bytes is None and size > most:
            raise FormatError(f"{path}: has {size} bytes; at most {most} are read")
        return file.read(-1 if n_bytes is None else min(n_bytes, size))


class WriteError(FormatError):
    """A file or a folder cannot be made where it should be."""


@contextlib.contextmanager
def writing(path: Path, done: str = "written") -> Iterator[None]:
    """Raises WriteError, with the file's name, for whatever the system says while `path` is written."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise WriteError(f"{path!s:.1000}: cannot be {done} ({system_words(error)})") from error


RESULTS = "reports"
"""The root of whatever commands write unasked. Where it is made here, git is told to leave it alone."""


def make_folder(path: Path) -> Path:
    """The folder, which is made if it is not there."""
    with writing(path, "made"):
        new = [one for one in (path, *path.parents) if one.name == RESULTS and not one.exists()]
        path.mkdir(parents=True, exist_ok=True)
    for root in new:
        write_text(root / ".gitignore", "*\n")
    return path


def write_bytes(path: Path, data: bytes) -> None:
    """Write atomically: `path` never holds a part of `data`. The new file has the mode that the user's umask gives."""
    # Of a long name the head: what is added must not make it too long.
    unfinished = path.with_name(f".{path.name[:50]}.{secrets.token_hex(4)}")
    make_folder(path.parent)
    with writing(path):
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """The sha256 of a plain value, however its keys are ordered."""
    return sha256(json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())


def sha256_file(path: Path) -> str:
    return sha256(read_bytes(path))


def read_text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise FormatError(f"{path}: not UTF-8 text (byte {error.start})") from error


def write_text(path: Path, text: str) -> None:
    """A lone surrogate, which UTF-8 cannot hold, is written as its escape."""
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def json_text(value: Any, compact: bool = False) -> str:
    """The project's one JSON style: indent 2, ASCII, no final newline; NaN is refused, JSON has none.

    `compact` leaves out the white space, for what programs alone read.
    """
    if compact:
        return json.dumps(value, separators=(",", ":"), allow_nan=False)
    return json.dumps(value, indent=2, allow_nan=False)


MAX_DEPTH = 64
SURROGATE = re.compile(r"\\ud[89a-f]", re.IGNORECASE)


def read_json(path: Path, strict: bool = True) -> Any:
    """JSON as the standard has it. What Python reads beside it would be taken for something else, so it is refused:

    a key that stands twice in one object, and more levels than `MAX_DEPTH`; if `strict`, also NaN, infinite numbers and
    lone surrogates, which a candidate's values may well be and no file of ours holds.
    """
    return json_value(read_text(path), str(path), strict)


def json_value(text: str, named: str, strict: bool = True) -> Any:
    """The value of a text, as `read_json` reads a file; `named` is where it stands."""
    hooks: dict[str, Any] = {"parse_constant": _finite, "parse_float": _finite} if strict else {}
    try:
        value = json.loads(text, object_pairs_hook=_unique, **hooks)
        _require_shallow(value)
        if strict and SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise FormatError(
            f"{named}: not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        ) from error
    except UnicodeEncodeError:
        raise FormatError(f"{named}: not valid JSON (half a surrogate pair, which is no character)") from None
    except ValueError as error:  # the hooks' own, and a number of more digits than Python takes
        raise FormatError(f"{named}: not valid JSON ({str(error).partition(';')[0]})") from None
    except RecursionError:
        raise FormatError(f"{named}: not valid JSON (nested deeper than {MAX_DEPTH} levels)") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that stands twice, Python would keep the last."""
    if (key := twice(key for key, _ in pairs)) is not None:
        raise ValueError(f"key {key!r:.80} stands twice in one object")
    return dict(pairs)


def twice(values: Iterable[Any]) -> Any:
    """The first value that stands there more than once, if there is one."""
    return next((value for value, n in Counter(values).items() if n > 1), None)


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number:.40} is no finite number")
    return value


def _require_shallow(value: Any) -> None:
    """Level by level, because whoever walks the value later may do so by recursion."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for node in level for child in _children(node)]
        if not level:
            return
    raise ValueError(f"nested deeper than {MAX_DEPTH} levels")


def _children(node: Any) -> Iterable[Any]:
    if isinstance(node, dict):
        return node.values()
    return node if isinstance(node, list) else ()


def write_json(path: Path, value: Any) -> None:
    write_text(path, json_text(value))


MOST_YAML = 2**18
"""Bytes, and what its aliases may stand for in all: YAML is for what people write, and slow to read."""


def read_yaml(path: Path, as_text: bool = False) -> Any:
    """YAML of plain values; a key that stands twice in one mapping, and more levels than `MAX_DEPTH`, are refused, and so
    is what its aliases would blow up.

    With `as_text` every scalar that bears no tag is the text that is written: YAML itself takes 010 for 8, 1:30 for 90
    and `on` for true.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            if (key := twice(str(key.value) for key, _ in node.value)) is not None:
                raise ValueError(f"key {key!r:.80} stands twice in one mapping, line {node.start_mark.line + 1}")
            return super().construct_mapping(node, deep)

    if as_text:
        Loader.yaml_implicit_resolvers = {}
    text = read_text(path)
    if len(text) > MOST_YAML:
        raise FormatError(f"{path}: not valid YAML here ({len(text)} characters; at most {MOST_YAML} are read)")
    try:
        return yaml_value(text, Loader)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:
        raise FormatError(f"{path}: not valid YAML ({in_one_line(error)[:300]})") from error
    except RecursionError:
        raise FormatError(f"{path}: not valid YAML (nested deeper than {MAX_DEPTH} levels)") from None


def yaml_value(text: str, loader: type[SafeLoader] | None = None) -> Any:
    """The plain value of a text, read by a safe loader; raises yaml's own errors, ValueError and RecursionError."""
    import yaml

    reading = (loader or yaml.SafeLoader)(text)
    try:
        if (node := reading.get_single_node()) is None:
            return None
        _require_small(node, {})
        value = reading.construct_document(node)
    finally:
        reading.dispose()
    _require_shallow(value)
    return value


def _require_small(node: Any, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many nodes one stands for, every alias written out, and how many levels: counted before anything is built."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = (0, MAX_DEPTH + 1)  # of a node that holds itself
    inside = node.value if isinstance(node.value, list) else []
    parts = [part for one in inside for part in (one if isinstance(one, tuple) else (one,))]
    counted = [_require_small(part, known) for part in parts]
    n = 1 + sum(n for n, _ in counted)
    depth = 1 + max((depth for _, depth in counted), default=0)
    if n > MOST_YAML:
        raise ValueError(f"its aliases stand for more than {MOST_YAML} values")
    if depth > MAX_DEPTH + 1:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
    known[id(node)] = (n, depth)
    return n, depth


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """CSV in the default dialect (CRLF, full-precision floats, None empty), as the formats ask."""
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, fieldnames=columns)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    write_text(path, csv_text(columns, rows))


def read_csv(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Header and rows of a CSV file in the default dialect; a row of another length than the header is refused."""
    try:
        lines = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except csv.Error as error:
        raise FormatError(f"{path}: not valid CSV ({error})") from error
    if not lines or not any(lines[0]):
        raise FormatError(f"{path}: missing header row")
    columns, *rows = lines
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise FormatError(f"{path}: row {number} has {len(row)} cells, the header has {len(columns)}")
    return columns, [dict(zip(columns, row, strict=True)) for row in rows]


def read_jsonl(path: Path) -> list[Any]:
    """The values of a file with one a line, each as `read_json` reads it."""
    lines = read_text(path).removesuffix("\n").split("\n")
    return [json_value(line, f"{path}, line {number}") for number, line in enumerate(lines, 1) if line.strip()]


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """One object a line, each line ended; NaN is refused."""
    write_text(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def read_safetensors(path: Path, most: int = MOST_BYTES) -> dict[str, Tensor]:
    from safetensors.torch import load

    data = read_bytes(path, most=most)
    try:
        return dict(load(data))
    except Exception as error:  # its own, and what comes of a header that names what there is not
        raise FormatError(f"{path}: not a whole safetensors file ({in_one_line(error)[:200]})") from error


@contextlib.contextmanager
def opened_safetensors(path: Path) -> Iterator[Callable[..., Tensor]]:
    """`read(name, index)` reads one tensor of the file, or what an index such as `[3, 1]` or `(slice(None), [3, 1])` picks.

    Nothing else of the file is read. Raises FormatError for a tensor that is not there, or a file that is not whole.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:

            def read(name: str, index: Any = ()) -> Tensor:
                tensor: Tensor = file.get_slice(name)[index] if index else file.get_tensor(name)
                return tensor

            yield read
    except (SafetensorError, OSError) as error:
        raise FormatError(f"{path}: not a whole safetensors file with what is asked of it ({error})") from error


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Bytes depend on names and values alone: tensors are stored contiguous, on the CPU, sorted by name.

    Names may share one tensor; each gets a copy, because the format takes no shared memory. `metadata` is kept beside the
    tensors as one text: the format's own writer brings several keys into another order each time.
    """
    from safetensors.torch import save

    about = None if metadata is None else {METADATA: json.dumps(dict(metadata), sort_keys=True)}
    own = {name: tensors[name].detach().cpu().contiguous().clone() for name in sorted(tensors)}
    write_bytes(path, save(own, about))


METADATA = "about"
"""The entry of a safetensors header that `write_safetensors` keeps its metadata in."""


def safetensors_metadata(path: Path) -> dict[str, str]:
    """What `write_safetensors` kept beside the tensors; empty where it was given nothing."""
    named, length = f"{path}: not a whole safetensors file", int.from_bytes(read_bytes(path, 8), "little")
    try:
        header = json_value(read_bytes(path, 8 + length)[8:].decode(), f"{named}, its header")
        about = json_value(header.get("__metadata__", {}).get(METADATA, "{}"), f"{named}, its metadata")
        return {str(name): str(value) for name, value in about.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise FormatError(f"{named} ({error})") from None


def read_pt(path: Path) -> Any:
    """What `torch.save` wrote, read with `weights_only`: tensors and plain values, and no code."""
    import torch

    data = read_bytes(path)
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except Exception as error:  # of many kinds, by where the file is damaged
        raise FormatError(f"{path}: not a file of tensors and plain values ({in_one_line(error)[:200]})") from None


def pt_bytes(value: Any) -> bytes:
    """What `torch.save` writes of tensors and plain values; made in memory, it does not depend on a file's name."""
    import torch

    buffer = io.BytesIO()
    torch.save(value.detach().cpu().contiguous().clone() if isinstance(value, torch.Tensor) else value, buffer)
    return buffer.getvalue()


def write_pt(path: Path, value: Any) -> None:
    write_bytes(path, pt_bytes(value))
