"""What is asked of the model: a demonstration, a query that needs it, and a prompt that does not; as values."""

from dataclasses import dataclass


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
