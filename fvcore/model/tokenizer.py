"""What is asked of a tokenizer, and what it really does at both ends of a text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from fvcore.formats import read_yaml


class Tokenizer(Protocol):
    """What is asked of a Hugging Face tokenizer."""

    bos_token: Any
    bos_token_id: Any
    eos_token: Any
    eos_token_id: Any
    model_max_length: int

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any: ...
    def tokenize(self, text: str) -> list[str]: ...
    def decode(self, token_ids: Any) -> str: ...


def n_tokens(tokenizer: Any, texts: list[str]) -> list[int]:
    """Of each text how many tokens it is by itself, without special ones."""
    if not (texts and getattr(tokenizer, "is_fast", False)):
        return [len(tokenizer.tokenize(text)) for text in texts]
    # All at once: a call of its own costs many times the text.
    return [len(ids) for ids in tokenizer(texts, add_special_tokens=False, return_attention_mask=False).input_ids]


RELEASES = {
    (token, size): name
    for name, sizes in read_yaml(Path(__file__).with_name("names.yaml"))["adding_bos"].items()
    for token, size in sizes
}
"""BOS and number of tokens of releases whose models were trained behind a BOS -> what they are called."""


def bos_left_out(tokenizer: Any) -> str:
    """What to know of a known release's tokenizer that adds no BOS although its models were trained behind one; or nothing."""
    name = RELEASES.get((str(tokenizer.bos_token), len(tokenizer)), "")
    if not name or (facts := BosFacts.of(tokenizer)).adds_bos:
        return ""
    return (
        f"bos_left_out: this is the tokenizer of {name}, whose models were trained behind {tokenizer.bos_token!r}, and it adds "
        f"none (ids of 'Q: a': {list(facts.first_ids)}); early files of some releases lack it. Take the corrected tokenizer"
    )


@dataclass(frozen=True, slots=True)
class BosFacts:
    """What the tokenizer really does about BOS and EOS, measured on a short text."""

    bos_token_id: int | None
    adds_bos: bool
    bos_without_special_tokens: bool
    appends_eos: bool
    first_ids: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> BosFacts:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        with_special = tokenizer("Q: a").input_ids
        without = tokenizer("Q: a", add_special_tokens=False).input_ids
        return cls(
            bos_token_id=bos,
            adds_bos=bos is not None and with_special[0] == bos,
            bos_without_special_tokens=bos is not None and without[0] == bos,
            appends_eos=eos is not None and with_special[-1] == eos,
            first_ids=tuple(with_special[:4]),
        )
