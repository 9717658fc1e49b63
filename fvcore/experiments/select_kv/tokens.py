"""What is asked of the model, as values, and how a tokenizer reads it: without special tokens, and each text by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from fvcore.experiments.select_kv.errors import HFBackendUnavailable, OnTaskInvalid
from fvcore.formats import sha256

Segment: TypeAlias = tuple[str, str]
"""A part of a demonstration's text, and the role of its characters."""


@dataclass(frozen=True, slots=True)
class Demo:
    """A demonstration as the model reads it; entries of `ids`, `offsets` and `roles` are those of its tokens.

    offsets: characters [start, end) of `text`     roles: header, key, arrow, newline or value
    """

    text: str
    ids: tuple[int, ...]
    offsets: tuple[tuple[int, int], ...]
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OnSample:
    """A query and the demonstration that answers it.

    group: what its words have in common with others' ("": nothing)     answer_ids: tokens that an answer may begin with
    full_answer_ids: the answer's tokens behind the query     boundary_mismatch: demonstration and query read together
    make other tokens than side by side     relation: what its demonstration shows, where others show the same
    """

    index: int
    sample_id: str
    episode_id: str
    group: str
    demo: Demo
    query_text: str
    query_ids: tuple[int, ...]
    answer: str
    answer_ids: tuple[int, ...]
    full_answer_ids: tuple[int, ...]
    boundary_mismatch: bool
    relation: str = ""


@dataclass(frozen=True, slots=True)
class OffSample:
    """A prompt that no demonstration should move. With a group it is asked on states of other groups alone.

    answer_ids: of a prompt that has an answer, the tokens that it may begin with
    """

    index: int
    sample_id: str
    group: str
    text: str
    ids: tuple[int, ...]
    answer_ids: tuple[int, ...] = ()


def require_fast(tokenizer: Any) -> None:
    """Raise HFBackendUnavailable for a tokenizer that cannot say which characters a token stands for."""
    if not getattr(tokenizer, "is_fast", False):
        raise HFBackendUnavailable(
            f"tokenizer {type(tokenizer).__name__}: expected a fast one, which tells a token's characters; found a slow one. "
            "Save the model with a tokenizer.json"
        )


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def demo_of(tokenizer: Any, segments: Sequence[Segment]) -> Demo:
    text = "".join(part for part, _ in segments)
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    offsets = tuple((int(start), int(end)) for start, end in read.offset_mapping)
    return Demo(text, tuple(read.input_ids), offsets, roles_of(segments, offsets))


def roles_of(segments: Sequence[Segment], offsets: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    """A token's role is the one of most of its characters; of a token that holds a character of a value, value."""
    of_character = [role for text, role in segments for _ in text]
    return tuple(_role(of_character[start : max(end, start + 1)]) for start, end in offsets)


def _role(of_characters: Sequence[str]) -> str:
    return "value" if "value" in of_characters else max(of_characters, key=of_characters.count)


@dataclass(frozen=True, slots=True)
class Answer:
    """first: tokens that it may begin with, the one behind the query in front     full: all of it behind the query"""

    first: tuple[int, ...]
    full: tuple[int, ...]


def answer_of(tokenizer: Any, query: str, answer: str) -> Answer:
    """An answer with a space, without, and on a line of its own, and as it follows the query."""
    alone, joint = ids_of(tokenizer, query), ids_of(tokenizer, f"{query.removesuffix(' ')} {answer}")
    parts = next((at for at, pair in enumerate(zip(alone, joint, strict=False)) if pair[0] != pair[1]), len(alone))
    full = joint[parts:]
    if not answer or not full:
        raise OnTaskInvalid(f"answer {answer!r} behind {query[-20:]!r}: expected at least one token, found none")
    variants = (_first(tokenizer, before, answer) for before in ("", " ", "\n"))
    return Answer(tuple(dict.fromkeys([full[0], *variants])), full)


def _first(tokenizer: Any, before: str, answer: str) -> int:
    """The first token that holds a character of the answer: what stands before it may be a token of its own."""
    read = tokenizer(before + answer, add_special_tokens=False, return_offsets_mapping=True)
    ends = [end for _, end in read.offset_mapping]
    return int(next(token for token, end in zip(read.input_ids, ends, strict=True) if end > len(before)))


def candidates(tokenizer: Any, query: str, answer: str, others: Sequence[str], apart: bool = True) -> Answer:
    """The answer with the first tokens that no other value of its episode begins with, and the one behind the query.

    apart: raise OnTaskInvalid where they begin alike behind the query, as a first token then does not say which was meant
    """
    own = answer_of(tokenizer, query, answer)
    rivals = {other: answer_of(tokenizer, query, other) for other in others if other != answer}
    for other, rival in rivals.items():
        if apart and own.full[0] == rival.full[0]:
            raise OnTaskInvalid(
                f"answers {answer!r} and {other!r} of one demonstration both begin with token "
                f"{tokenizer.decode([own.full[0]])!r}, so a first token cannot tell them apart; choose other values, or "
                "score whole answers of relations with eval.answer_scoring=full_answer"
            )
    taken = {token for rival in rivals.values() for token in rival.first}
    return Answer(tuple(sorted({own.full[0], *(token for token in own.first if token not in taken)})), own.full)


def on_sample(
    tokenizer: Any,
    index: int,
    group: str,
    segments: Sequence[Segment],
    query: str,
    answer: str,
    values: Sequence[str],
    apart: bool = True,
) -> OnSample:
    """values: all of the demonstration's, among which an answer must be recognised; by its first token, if `apart`"""
    demo, query_ids = demo_of(tokenizer, segments), ids_of(tokenizer, query)
    try:
        read = candidates(tokenizer, query, answer, values, apart)
    except OnTaskInvalid as error:
        raise OnTaskInvalid(f"ON sample {index}: {error}") from None
    return OnSample(
        index=index,
        sample_id=f"on-{index:04}",
        episode_id=sha256(demo.text.encode())[:12],
        group=group,
        demo=demo,
        query_text=query,
        query_ids=query_ids,
        answer=answer,
        answer_ids=read.first,
        full_answer_ids=read.full,
        boundary_mismatch=ids_of(tokenizer, demo.text + query) != demo.ids + query_ids,
    )
