"""Tokens that two sets of responses differ in: how much, by what test, and which of them count.

A response is one witness, however often it says a word, so what is tested is in how many responses a token stands. The
plan's own test, of tokens as if each were drawn by itself, is kept to reproduce it, and says that it is not calibrated.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Literal, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fvcore.experiments.sae.config import Tokens
from fvcore.experiments.sae.schemas import Row
from fvcore.experiments.statistics import adjusted, fisher
from fvcore.formats import sha256

MIN_RESPONSES = 10
"""On either side of a comparison; with fewer there is none."""
PRIOR = 500.0
"""Tokens' worth of what both sides say together, which z is drawn towards."""
PERMUTATIONS = 2000
PLAN = "token_chi2_legacy"

Ids: TypeAlias = NDArray[np.int64]
Numbers: TypeAlias = NDArray[np.float64]


class Word(Row):
    """token: its text     piece: as the tokenizer writes it"""

    token: str
    piece: str
    token_id: int

    @classmethod
    def of(cls, tokenizer: Any, token_id: int, **more: Any) -> Self:
        piece = str(tokenizer.convert_ids_to_tokens(token_id))
        return cls(token=tokenizer.decode([token_id]), piece=piece, token_id=token_id, **more)


class Token(Word):
    """A token that goes with a feature.

    log_odds: of its share of all tokens, or in the plan's mode the plan's log ratio of counts
    z: of the log odds, drawn towards none by what both sides say together     count, df: tokens, and responses that hold it
    boundary: most often the first token of a response; logs hold stripped texts, so that it may be another one in place
    """

    log_odds: float
    z: float
    p_value: float
    q_value: float
    baseline_count: int
    patched_count: int
    baseline_df: int
    patched_df: int
    boundary: bool


class Compared(Row):
    """A comparison; `insufficient` where either side has fewer than `MIN_RESPONSES` responses.

    tokens_tested: those that stand in enough responses     calibrated: whether p-values mean what they say
    added, removed: what passed, the largest |z| first
    """

    status: Literal["ok", "insufficient"]
    n_baseline: int
    n_patched: int
    n_empty: int
    tokens_tested: int
    calibrated: bool
    added: list[Token]
    removed: list[Token]


def compare(baseline: Sequence[Ids], patched: Sequence[Ids], own: Tokens, draw: str, tokenizer: Any) -> Compared:
    """Which tokens differ. draw: what random labels are drawn by"""
    enough = min(len(baseline), len(patched)) >= MIN_RESPONSES
    table = Table(baseline, patched, own.min_df) if enough else None
    rows = [] if table is None else list(_kept(table, own, draw, tokenizer))
    return Compared(
        status="ok" if enough else "insufficient",
        n_baseline=len(baseline),
        n_patched=len(patched),
        n_empty=sum(not len(ids) for ids in (*baseline, *patched)),
        tokens_tested=0 if table is None else len(table.vocabulary),
        calibrated=own.mode != PLAN,
        added=[row for row in rows if row.log_odds > 0][: own.top_k],
        removed=[row for row in rows if row.log_odds < 0][: own.top_k],
    )


def _kept(table: Table, own: Tokens, draw: str, tokenizer: Any) -> Iterator[Token]:
    """What passed, the largest |z| first; the plan corrects nothing."""
    p_values = table.p_values(own.mode, own.q, draw)
    q_values = np.asarray(adjusted(p_values.tolist()))
    odds, z = (table.log_ratio() if own.mode == PLAN else table.log_odds()), table.z()
    passed = (np.abs(odds) > own.min_abs_log_odds) & ((p_values if own.mode == PLAN else q_values) <= own.q)
    if own.mode == "response_fisher":
        passed &= np.sign(odds) == np.sign(table.lean())
    for at in np.lexsort((table.vocabulary, -np.abs(z))).tolist():
        if passed[at]:
            yield table.row(at, tokenizer, odds[at], z[at], p_values[at], q_values[at])


class Table:
    """Counts of the tokens that stand in enough responses. Each of two sides: baseline first, patched second.

    counts (response, token), the baseline's first     total: all tokens of a side, tested or not
    """

    def __init__(self, baseline: Sequence[Ids], patched: Sequence[Ids], min_df: int) -> None:
        responses = [*baseline, *patched]
        lengths = [len(ids) for ids in responses]
        vocabulary, places = np.unique(np.concatenate(responses), return_inverse=True)
        cells = np.repeat(np.arange(len(responses)), lengths) * len(vocabulary) + places
        counts = np.bincount(cells, minlength=len(responses) * len(vocabulary)).reshape(len(responses), len(vocabulary))
        often = (counts > 0).sum(0) >= min_df
        self.vocabulary, self.counts = vocabulary[often], counts[:, often]
        self.n = len(baseline), len(patched)
        self.total = np.array([sum(lengths[: self.n[0]]), sum(lengths[self.n[0] :])], dtype=float)
        self.first = Counter(int(ids[0]) for ids in responses if len(ids))

    def sums(self, counts: NDArray[Any]) -> Numbers:
        """(response, token) -> (2, token)."""
        return np.stack([counts[: self.n[0]].sum(0), counts[self.n[0] :].sum(0)]).astype(float)

    @property
    def tokens(self) -> Numbers:
        return self.sums(self.counts)

    @property
    def documents(self) -> Numbers:
        return self.sums(self.counts > 0)

    def lean(self) -> Numbers:
        """By how much the share of responses that hold a token changes: what is tested, and not always of the odds' sign."""
        shares = self.documents / np.array(self.n)[:, None]
        return np.asarray(shares[1] - shares[0])

    def log_odds(self) -> Numbers:
        """The log odds ratio of shares of tokens, half a token added everywhere."""
        c = self.tokens
        logits = np.log((c + 0.5) / (self.total[:, None] - c + 0.5))
        return np.asarray(logits[1] - logits[0])

    def log_ratio(self) -> Numbers:
        """The plan's: of counts, whatever the totals are."""
        c = self.tokens
        return np.asarray(np.log((c[1] + 1) / (c[0] + 1)))

    def z(self) -> Numbers:
        """The log odds ratio with an informative Dirichlet prior, over its standard error (Monroe et al. 2008)."""
        c = self.tokens
        prior = PRIOR * c.sum(0) / self.total.sum()
        logits = np.log((c + prior) / (self.total[:, None] + PRIOR - c - prior))
        return np.asarray((logits[1] - logits[0]) / np.sqrt((1 / (c + prior)).sum(0)))

    def p_values(self, mode: str, q: float, draw: str) -> Numbers:
        if mode == "response_fisher":
            return self.exact()
        return self.permuted(q, draw) if mode == "permutation" else self.chi2()

    def exact(self) -> Numbers:
        """Fisher's, two-sided, of how many responses of each side hold a token."""
        pairs = self.documents.astype(int).T.tolist()
        return np.array([_fisher(held[1], self.n[1], held[0], self.n[0]) for held in pairs])

    def permuted(self, q: float, draw: str) -> Numbers:
        """Of the difference of mean counts, two-sided, under random labels of responses.

        There are as many labels as it takes for a single token to pass `q` among all that are tested.
        """
        n, size = sum(self.n), len(self.vocabulary)
        times = max(PERMUTATIONS, int(np.ceil(size / q)) if q else 0)
        random = np.random.default_rng(int(sha256(draw.encode())[:12], 16))
        weights = np.r_[np.full(self.n[0], -1 / self.n[0]), np.full(self.n[1], 1 / self.n[1])]
        seen = np.abs(weights @ self.counts)
        reached = np.zeros(size)
        for block in np.array_split(np.arange(times), -(-times // 500)):
            labels = random.permuted(np.broadcast_to(weights, (len(block), n)), axis=1)
            reached += (np.abs(labels @ self.counts) >= seen - 1e-12).sum(0)
        return (1 + reached) / (times + 1)

    def chi2(self) -> Numbers:
        """Of counts of tokens, with the continuity correction: as if each token were drawn by itself, which it is not."""
        from scipy.stats import chi2

        c, others = self.tokens, self.total[:, None] - self.tokens
        apart = np.maximum(np.abs(c[1] * others[0] - c[0] * others[1]) - self.total.sum() / 2, 0)
        with np.errstate(divide="ignore", invalid="ignore"):
            score = self.total.sum() * apart**2 / (c.sum(0) * others.sum(0) * self.total.prod())
        return np.asarray(chi2.sf(np.nan_to_num(score), 1))

    def row(self, at: int, tokenizer: Any, odds: float, z: float, p: float, q: float) -> Token:
        token = int(self.vocabulary[at])
        count, held = self.tokens[:, at].astype(int), self.documents[:, at].astype(int)
        return Token.of(
            tokenizer,
            token,
            log_odds=float(odds),
            z=float(z),
            p_value=float(p),
            q_value=float(q),
            baseline_count=int(count[0]),
            patched_count=int(count[1]),
            baseline_df=int(held[0]),
            patched_df=int(held[1]),
            boundary=2 * self.first[token] > count.sum(),
        )


@lru_cache(maxsize=1 << 16)
def _fisher(patched: int, n_patched: int, baseline: int, n_baseline: int) -> float:
    """Kept, because responses are few and tokens many: the same tables come again and again."""
    return fisher(patched, n_patched - patched, baseline, n_baseline - baseline)
