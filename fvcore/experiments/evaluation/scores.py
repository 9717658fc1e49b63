"""How good answers are: rank of the target token, and words shared with the right answer.

Generated answers are compared as is usual for extractive question answering (SQuAD): lower case, without punctuation,
articles and extra white space.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fvcore.model.spec import ModelError

ARTICLES = re.compile(r"\b(a|an|the)\b")


def ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """How many tokens come before the target, 0 is the first: (..., vocab) and ids that fit (...) -> (...).

    Equal logits are ordered by token id. Raises ModelError where a logit is not a number.
    """
    if bool(torch.isnan(logits).any()):
        raise ModelError(
            "the model gives logits that are not numbers; no rank can be read from them (a smaller alpha?)"
        )
    own = logits.gather(-1, targets[..., None])
    before = torch.arange(logits.shape[-1], device=logits.device) < targets[..., None]
    return ((logits > own) | ((logits == own) & before)).sum(-1)


def top_k_accuracy(ranks: Sequence[int], k: int) -> float:
    """Share of targets among the first k tokens."""
    if not ranks:
        raise ValueError("no answers to score")
    return sum(rank < k for rank in ranks) / len(ranks)


def answer_in(generated: str) -> str:
    """The answer in a generated text: its first run of letters, digits, underscores, dots and spaces.

    This is where the reference cuts, so that scores can be compared; a hyphen or an apostrophe ends an answer.
    """
    found = re.search(r"[\w. ]+", generated)
    return found.group().strip() if found else ""


def normalised(text: str) -> list[str]:
    """The words that are compared."""
    bare = text.lower().translate(str.maketrans("", "", string.punctuation))
    return ARTICLES.sub(" ", bare).split()


def f1(answer: str, right: str) -> float:
    """Harmonic mean of precision and recall over words, repeated ones counted as often as they stand in both."""
    found, wanted = normalised(answer), normalised(right)
    shared = sum((Counter(found) & Counter(wanted)).values())
    return 2 * shared / (len(found) + len(wanted)) if shared else 0.0


def exact_match(answer: str, right: str) -> float:
    return float(normalised(answer) == normalised(right))


def first_word(answer: str, right: str) -> float:
    """Whether both begin with the same word, or neither has one."""
    return float(normalised(answer)[:1] == normalised(right)[:1])


Score = Callable[[str, str], float]
SCORES: dict[str, Score] = {"f1": f1, "exact_match": exact_match, "first_word": first_word}


def best(score: Score, answer: str, answers: Sequence[str]) -> float:
    """Against the right answer that fits best."""
    return max(score(answer, right) for right in answers)
