"""Logs and checkpoints as they come: NaN and lone surrogates are read and counted, a damaged file names its line.

A log is read record by record, as an array, a record a line, gzipped or not, or as Parquet where pyarrow is there. Memory is
that of one piece: a small file is decoded whole by msgspec where it is installed, and whatever that refuses, and every large
file, by the standard library in chunks. Both say the same of a file.
"""

import codecs
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeAlias

from fvcore.formats import FormatError, opened

READ = (".json", ".jsonl", ".json.gz", ".jsonl.gz", ".parquet")
KEYS = ("feature", "condition", "trial", "response")
CHUNK = 1 << 20
WHOLE = 1 << 25
"""Bytes of the largest file that is decoded in one piece, and characters of the longest record."""

SPACE = re.compile(r"[ \t\n\r]*")


class Missing:
    """What stands for a key that a record does not have."""

    def __repr__(self) -> str:
        return "nothing"


MISSING = Missing()
Record: TypeAlias = tuple[Any, Any, Any, Any]
"""feature, condition, trial, response"""


class BadTopLevel(FormatError):
    """The file is JSON, and not of the kind that is looked for."""


@dataclass
class Oddities:
    """What JSON does not have and files do."""

    nan: int = 0
    lone_surrogates: int = 0

    def constant(self, name: str) -> float:
        self.nan += 1
        return float(name.replace("Infinity", "inf"))


def is_read(path: Path) -> bool:
    return path.name.endswith(READ)


def read_document(path: Path, oddities: Oddities) -> Any:
    """A whole JSON file; raises FormatError that names the line, or the byte, where it is damaged."""
    try:
        return json.loads("".join(_text(path)), parse_constant=oddities.constant)
    except json.JSONDecodeError as error:
        raise _damaged(path, error, error.lineno, error.colno) from None
    except (RecursionError, ValueError) as error:
        raise FormatError(f"{path}: not valid JSON ({error})") from None


def read_records(path: Path, oddities: Oddities) -> Iterator[Record]:
    """The records of a log, those before a damage too.

    Raises FormatError where the file is damaged, and BadTopLevel where it holds something else than records.
    """
    if path.suffix == ".parquet":
        yield from _parquet(path)
    elif (records := _quick(path)) is not None:
        yield from records
    else:
        values = _lines(path, oddities) if ".jsonl" in path.suffixes else _elements(path, oddities)
        for value in values:
            record = _record(value if isinstance(value, dict) else {})
            oddities.lone_surrogates += isinstance(record[-1], str) and is_lone(record[-1])
            yield record


def _record(value: dict[str, Any]) -> Record:
    get = value.get
    return get("feature", MISSING), get("condition", MISSING), get("trial", MISSING), get("response", MISSING)


def is_lone(text: str) -> bool:
    """Whether it holds half a surrogate pair, which no encoding and no tokenizer takes."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _bytes(path: Path, size: int) -> Iterator[bytes]:
    """Pieces of a file, unpacked."""
    try:
        with opened(path) as raw:
            file = gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw
            while piece := file.read(size):
                yield piece
    except (OSError, EOFError, zlib.error) as error:
        raise FormatError(f"{path}: cannot be read ({error})") from None


def _text(path: Path) -> Iterator[str]:
    """Pieces of a file's text; raises FormatError that names the byte which is none."""
    decoder, at = codecs.getincrementaldecoder("utf-8-sig")(), 0
    for piece in _bytes(path, CHUNK):
        pending = len(decoder.getstate()[0])
        try:
            yield decoder.decode(piece)
        except UnicodeDecodeError as error:
            raise FormatError(f"{path}: not UTF-8 text (byte {at - pending + error.start})") from None
        at += len(piece)
    if decoder.getstate()[0]:
        raise FormatError(f"{path}: not UTF-8 text (byte {at}: it ends within a character)")


def _damaged(path: Path, error: json.JSONDecodeError, line: int, column: int) -> FormatError:
    return FormatError(f"{path}: not valid JSON (line {line}, column {column}: {error.msg})")


class _Window:
    """A part of a text that moves on: what lies before `at` was read, and is let go when more is needed."""

    def __init__(self, path: Path) -> None:
        self.path, self.pieces = path, _text(path)
        self.text, self.at, self.lines, self.ended = "", 0, 0, False

    def more(self) -> bool:
        """Whether there was more; twice as much each time, so that a long record is not read again too often."""
        self.lines += self.text.count("\n", 0, self.at)
        kept, wanted, pieces = len(self.text) - self.at, max(CHUNK, len(self.text) - self.at), [self.text[self.at :]]
        while wanted > 0 and (piece := next(self.pieces, "")):
            pieces.append(piece)
            wanted -= len(piece)
        self.text, self.at = "".join(pieces), 0
        self.ended = len(self.text) == kept
        return not self.ended

    def damaged(self, error: json.JSONDecodeError) -> FormatError:
        line = self.lines + self.text.count("\n", 0, error.pos) + 1
        return _damaged(self.path, error, line, error.colno)

    def require(self, allowed: str) -> str:
        """The next character that is no white space, read over; "" is the end of the file, allowed where `allowed` is ""."""
        found = self.peek()
        if (found == "") != (allowed == "") or found not in allowed:
            expected = f"expected one of {allowed}" if allowed else "expected the end of the file"
            raise self.damaged(json.JSONDecodeError(expected, self.text, self.at))
        self.at += len(found)
        return found

    def peek(self) -> str:
        while True:
            self.at = SPACE.match(self.text, self.at).end()  # type: ignore[union-attr]  # it matches nothing, too
            if self.at < len(self.text) or not self.more():
                return self.text[self.at : self.at + 1]

    def value(self, decoder: json.JSONDecoder) -> Any:
        self.peek()
        while True:
            try:
                value, end = decoder.raw_decode(self.text, self.at)
            except json.JSONDecodeError as error:
                size = len(self.text)
                in_sight = error.pos < size - 16 and not error.msg.startswith("Unterminated")  # and not cut off here
                if in_sight or size - self.at > WHOLE or not self.more():
                    raise self.damaged(error) from None
                continue
            except (RecursionError, ValueError) as error:
                raise FormatError(f"{self.path}: not valid JSON ({error})") from None
            length, whole = end - self.at, end < len(self.text)
            if whole or not self.more():  # a number at the end of the window may go on
                self.at += length
                return value


def _elements(path: Path, oddities: Oddities) -> Iterator[Any]:
    """The elements of an array, one after the other."""
    window, decoder = _Window(path), json.JSONDecoder(parse_constant=oddities.constant)
    if (first := window.peek()) != "[":
        raise BadTopLevel(f"{path}: expected an array of records, found {first!r} first")
    window.at += 1
    if window.peek() == "]":
        window.at += 1
    else:
        yield window.value(decoder)
        while window.require(",]") == ",":
            yield window.value(decoder)
    window.require("")


def _lines(path: Path, oddities: Oddities) -> Iterator[Any]:
    number, rest = 0, ""
    for piece in (*_text(path), "\n"):
        *lines, rest = (rest + piece).split("\n")
        for line in lines:
            number += 1
            if line.strip():
                yield _line(path, line, number, oddities)


def _line(path: Path, line: str, number: int, oddities: Oddities) -> Any:
    try:
        return json.loads(line, parse_constant=oddities.constant)
    except json.JSONDecodeError as error:
        raise _damaged(path, error, number, error.colno) from None
    except (RecursionError, ValueError) as error:
        raise FormatError(f"{path}: not valid JSON (line {number}: {error})") from None


@cache
def _decode(lines: bool) -> Callable[[bytes], list[Any]] | None:
    """msgspec's, of a file's records, or nothing where it is not installed."""
    try:
        import msgspec
    except ImportError:
        return None
    kept = msgspec.defstruct("Kept", [(key, Any, MISSING) for key in KEYS], gc=False)
    of_line, of_file = msgspec.json.Decoder(kept), msgspec.json.Decoder(list[kept])  # type: ignore[valid-type]
    decode: Callable[[bytes], list[Any]] = of_line.decode_lines if lines else of_file.decode
    return decode


def _quick(path: Path) -> Iterator[Record] | None:
    """The records by msgspec; None where it is not there, or refuses, or the file is too large to be held at once."""
    if (decode := _decode(".jsonl" in path.suffixes)) is None:
        return None
    data = next(_bytes(path, WHOLE + 1), b"")
    try:
        if len(data) > WHOLE or (not data.isascii() and not data.decode()):
            return None
        return map(attrgetter(*KEYS), decode(data))
    except (ValueError, RecursionError):  # msgspec's own errors are values that are wrong
        return None


def _parquet(path: Path) -> Iterator[Record]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise FormatError(f"{path}: Parquet is read by pyarrow, which is not installed (pip install pyarrow)") from None
    try:
        with ParquetFile(path) as file:
            held = [key for key in KEYS if key in file.schema_arrow.names]
            for batch in file.iter_batches(batch_size=8192, columns=held):
                for row in batch.to_pylist():
                    yield _record(row)
    except (ArrowException, OSError) as error:
        raise FormatError(f"{path}: not a whole Parquet file ({error})") from None
