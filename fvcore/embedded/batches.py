"""In-context-learning texts, and where their answers stand.

Whole texts are tokenized, as at inference: GPT-2 reads the blank line between two pairs differently inside a text
and at its end, so joining the tokens of parts would train a model on sequences it never meets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from tokenizers import Encoding, Tokenizer
from torch import Tensor

Span = tuple[int, int]
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Batch:
    """Right-padded texts, all with the same number of pairs."""

    input_ids: Tensor  # (text, token)
    first: Tensor  # (text, pair), where each answer begins
    is_answer: Tensor  # (text, token)
    is_layout: Tensor  # (text, token), what is neither question nor answer: it follows from the format alone


def icl_text(pairs: Pairs) -> tuple[str, list[Span], list[Span]]:
    """Questions and answers as the prompts have them, open for a next question; the character spans of both."""
    text, questions, answers = "", list[Span](), list[Span]()
    for question, answer in pairs:
        for prefix, word, suffix, spans in (("Q:", question, "\n", questions), ("A:", answer, "\n\n", answers)):
            text += prefix
            spans.append((len(text), len(text) + 1 + len(word)))
            text += f" {word}{suffix}"
    return f"{text}Q:", questions, answers


def icl_batch(tokenizer: Tokenizer, contents: Sequence[Pairs], beginnings: Sequence[str], rng: Random) -> Batch:
    """One text for each list of pairs, behind a random one of `beginnings`."""
    texts = [icl_text(pairs) for pairs in contents]
    begins = rng.choices(beginnings, k=len(texts))
    encodings = tokenizer.encode_batch([begin + text for begin, (text, _, _) in zip(begins, texts, strict=True)])
    # Padded on the right with id 0: no token attends to what comes after it.
    rows = [torch.tensor(encoding.ids) for encoding in encodings]
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    is_answer, is_layout = torch.zeros_like(input_ids, dtype=torch.bool), torch.zeros_like(input_ids, dtype=torch.bool)
    first = torch.zeros(len(texts), len(texts[0][2]), dtype=torch.long)
    for row, (begin, encoding, (_, questions, answers)) in enumerate(zip(begins, encodings, texts, strict=True)):
        is_layout[row, : len(encoding)] = True
        for span in questions:
            is_layout[row, _tokens(encoding, span, len(begin))] = False
        for pair, span in enumerate(answers):
            tokens = _tokens(encoding, span, len(begin))
            first[row, pair] = tokens.start
            is_answer[row, tokens], is_layout[row, tokens] = True, False
    return Batch(input_ids, first, is_answer, is_layout)


def _tokens(encoding: Encoding, span: Span, offset: int) -> slice:
    """The tokens that make up a span of characters, `offset` further on."""
    begin, end = (encoding.char_to_token(offset + at) for at in (span[0], span[1] - 1))
    assert begin is not None
    assert end is not None
    return slice(begin, end + 1)


def first_token(tokenizer: Tokenizer, answer: str) -> int:
    """The token by which an answer is judged."""
    return tokenizer.encode(f" {answer}", add_special_tokens=False).ids[0]
