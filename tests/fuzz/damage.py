"""Ways to damage a file, drawn by hypothesis: its bytes, or the structure of the JSON in it.

Hypothesis draws, `derandomize` fixes the draws: every run sees the same damage. A draw that leaves the meaning as it was
is no damage and is thrown away (`Campaign.hurt`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, assume, settings
from hypothesis import strategies as st

from fvcore.formats import FormatError
from fvcore.gates import StageError
from fvcore.model.spec import ModelError

# What this project raises on purpose. Anything else is a traceback from the depths.
OURS = (FormatError, StageError, ModelError)

Keys = tuple[str | int, ...]

# Put as they stand where a value was: other types, nulls, numbers no one can mean, and things that are no JSON.
RAW = (
    "null", "true", "false", "{}", "[]", '""', "[[]]", '[""]', '{"": null}', "[null]", "0", "-1", "1", "-0.0", "1.5",
    "1e3", "1e999", "-1e999", "1e-400", "9" * 30, "9" * 400, "9" * 5000, "-" + "9" * 5000, "NaN", "Infinity",
    "-Infinity", "01", "1.", "+1", "0x1", "'x'", "None", "nan", "undefined", '"\\u0000"', '"\\ud800"', '"\\udfff\\ud800"',
    '"\\x"', '"open', '"..\\/.."', '"/"', '"' + "x" * 5000 + '"', '"0"', '"NaN"', '"{}"', '" "', '"\\n"', '"\u202e"',
    "[" * 300 + "]" * 300, "[" * 900 + "]" * 900, "[" * 5000 + "]" * 5000, "[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000,
    "// no comment", "1,", ",", "",
)  # fmt: skip
MARK = "\u0001here\u0001"


class Twin(str):
    """A key that stands beside its equal: the only way to write a duplicate with `json`."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def places(value: Any, at: Keys = ()) -> Iterator[Keys]:
    """Every node of a JSON value, the root first."""
    yield at
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in children:
        yield from places(child, (*at, key))


def node(value: Any, at: Keys) -> Any:
    for key in at:
        value = value[key]
    return value


def delete(value: Any, at: Keys, raw: str) -> None:
    del node(value, at[:-1])[at[-1]]


def replace(value: Any, at: Keys, raw: str) -> None:
    node(value, at[:-1])[at[-1]] = MARK


def wrap(value: Any, at: Keys, raw: str) -> None:
    node(value, at[:-1])[at[-1]] = [node(value, at)]


def duplicate(value: Any, at: Keys, raw: str) -> None:
    """A key or an element stands twice; the second time with another value."""
    parent = node(value, at[:-1])
    if isinstance(parent, dict):
        parent[Twin(at[-1])] = MARK
    else:
        parent.append(parent[at[-1]])


def rename(value: Any, at: Keys, raw: str) -> None:
    parent = node(value, at[:-1])
    if isinstance(parent, dict):
        parent[f"{at[-1]}_"] = parent.pop(at[-1])
    else:
        parent.insert(0, parent.pop(at[-1]))


def alter(value: Any, at: Keys, raw: str) -> None:
    """Another value of the same type."""
    parent, old = node(value, at[:-1]), node(value, at)
    others: dict[type, Callable[[], Any]] = {
        bool: lambda: not old,
        int: lambda: old + 1,
        float: lambda: old * 1.5 + 1,
        str: lambda: f"{old}x",
        list: lambda: old[::-1],
        dict: lambda: dict(list(old.items())[1:]),
        type(None): lambda: 0,
    }
    parent[at[-1]] = others[type(old)]()


OPERATIONS = (delete, replace, replace, replace, wrap, duplicate, rename, alter)


@st.composite
def json_damage(draw: st.DrawFn, text: str) -> bytes:
    """One or two operations on the structure, at nodes of any depth."""
    value = json.loads(text)
    raw = draw(st.sampled_from(RAW))
    for _ in range(draw(st.integers(1, 2))):
        every = [at for at in places(value) if at and isinstance(at[-1], str | int)]
        assume(every)
        # Level by level: drawn from all nodes, the few at the top would hardly ever come.
        depth = draw(st.integers(1, max(map(len, every))))
        at = draw(st.sampled_from([at for at in every if len(at) == depth]))
        draw(st.sampled_from(OPERATIONS))(value, at, raw)
    return json.dumps(value).replace(json.dumps(MARK), raw).encode()


@st.composite
def byte_damage(draw: st.DrawFn, data: bytes) -> bytes:
    """Flipped bits, a cut, a hole, a doubled piece, bytes that are not UTF-8, or another file altogether."""
    at = draw(st.integers(0, len(data) - 1))
    n = draw(st.integers(1, 64))
    return draw(
        st.sampled_from(
            [
                lambda: data[:at] + bytes([data[at] ^ 1 << n % 8]) + data[at + 1 :],
                lambda: data[:at],
                lambda: data[:at] + data[at + n :],
                lambda: data[:at] + data[at : at + n] + data[at:],
                lambda: data[:at] + b"\xff\xfe"[: n % 2 + 1] + data[at:],
                lambda: data[:at] + bytes(n) + data[at + n :],
                lambda: data[at:],
                lambda: data + data[:n],
                lambda: b"\xef\xbb\xbf" + data[: len(data) - n % 3],
                lambda: data.decode("latin-1").encode("utf-16")[: -n % 5 or None],
                lambda: bytes(n) if n % 2 else b"",
            ]
        )
    )()


def meaning(data: bytes) -> str | None:
    """What a JSON text says, however it is laid out; None where it is no JSON that Python reads."""
    try:
        return json.dumps(json.loads(data.decode()), sort_keys=True)
    except (ValueError, RecursionError):
        return None


def drawn(n: int) -> Any:
    """The same damages in every run; more than `n`, because hypothesis draws some of them again."""
    return settings(
        max_examples=8 * n // 5,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],  # a failure is shown as it is: shrinking a whole file takes minutes
        suppress_health_check=list(HealthCheck),
    )


@dataclass
class Campaign:
    """What was tried and what came of it."""

    seen: set[bytes] = field(default_factory=set)
    said: dict[str, int] = field(default_factory=dict)

    def hurt(self, data: bytes, sound: bytes, means: Callable[[bytes], Any] = meaning) -> None:
        """Throw away what is no damage."""
        assume(data != sound and ((said := means(data)) is None or said != means(sound)))
        self.seen.add(hashlib.sha256(data).digest())

    def refused(self, judge: Callable[[], object], named: Path) -> None:
        """One clear error of ours, or a failing test that shows what was accepted or what broke."""
        try:
            found = judge()
        except OURS as error:
            text = str(error)
            assert 10 < len(text) < 2000, f"no sentence: {text[:3000]}"
            assert "\n" not in text, f"more than a line: {text}"
            text.encode()  # a lone surrogate could not be printed
            kind = type(error).__name__
            self.said[kind] = self.said.get(kind, 0) + 1
        else:
            raise AssertionError(f"accepted: {found!r:.300} from {named}")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def tell(name: str, campaign: Campaign, least: int) -> None:
    said = ", ".join(f"{kind} {n}" for kind, n in sorted(campaign.said.items()))
    print(f"{name}: {len(campaign.seen)} damaged inputs ({said})")
    assert len(campaign.seen) >= least, f"{name}: only {len(campaign.seen)} inputs"
