"""ON samples that nothing but their demonstration answers: keys and values, paired anew for every sample."""

from collections.abc import Sequence
from itertools import combinations
from string import ascii_uppercase
from typing import Any

import numpy as np

from fvcore.experiments.select_kv.config import Phase2, SyntheticSettings
from fvcore.experiments.select_kv.errors import OnTaskInvalid
from fvcore.experiments.select_kv.tokens import OnSample, Segment, candidates, ids_of, on_sample

DRAW = 1
"""Which draw of the seed these are."""
KEYS = 100  # names that are tried; a tokenizer of whole words may know few

Pair = tuple[str, str]


def samples(settings: Phase2, tokenizer: Any) -> list[OnSample]:
    """Sample i depends on the seed and on i alone, whatever number is asked for."""
    synthetic = settings.data.synthetic
    keys, values = key_pool(synthetic, tokenizer), value_pool(synthetic, tokenizer)
    asked = [_drawn(synthetic, keys, values, settings.seed, index) for index in range(settings.eval.on_samples)]
    return [_sample(synthetic, tokenizer, index, *one) for index, one in enumerate(asked)]


def key_pool(synthetic: SyntheticSettings, tokenizer: Any) -> list[str]:
    """Keys that the tokenizer knows."""
    names = [f"{synthetic.key_prefix}_{i}" for i in range(max(KEYS, synthetic.num_pairs))]
    return _enough("keys", [name for name in names if _known(tokenizer, name)], synthetic)


def value_pool(synthetic: SyntheticSettings, tokenizer: Any) -> list[str]:
    """Letters that are one token behind a space, words of a prefix and a letter where they are too few, or those given."""
    if synthetic.mapping == "fixed":
        return [f"{synthetic.value_prefix}{i}" for i in range(synthetic.num_pairs)]
    if synthetic.value_pool != "auto":
        return _enough("values", [_symbol(value) for value in synthetic.value_pool], synthetic)
    pools = [list(ascii_uppercase), [synthetic.value_prefix + letter for letter in ascii_uppercase]]
    usable = [[value for value in pool if _one_token(tokenizer, value)] for pool in pools]
    return _enough("values", next((pool for pool in usable if len(pool) >= synthetic.num_pairs), usable[0]), synthetic)


def _enough(what: str, pool: list[str], synthetic: SyntheticSettings) -> list[str]:
    if len(set(pool)) < synthetic.num_pairs:
        raise OnTaskInvalid(
            f"data.synthetic.num_pairs is {synthetic.num_pairs}, and the tokenizer leaves {len(set(pool))} {what}: "
            f"{', '.join(pool[:5]) or 'none'}; ask for fewer pairs, or say others with data.synthetic"
        )
    return list(dict.fromkeys(pool))


def _symbol(value: str) -> str:
    if not value or value.split() != [value]:
        raise OnTaskInvalid(f"data.synthetic.value_pool: expected single symbols without white space, found {value!r}")
    return value


def _known(tokenizer: Any, text: str) -> bool:
    return bool(text) and tokenizer.unk_token_id not in ids_of(tokenizer, text)


def _one_token(tokenizer: Any, value: str) -> bool:
    return len(ids_of(tokenizer, f" {value}")) == 1 and _known(tokenizer, f" {value}")


def _drawn(
    synthetic: SyntheticSettings, keys: Sequence[str], values: Sequence[str], seed: int, index: int
) -> tuple[list[Pair], Pair]:
    """The pairs of a demonstration and the one that is asked for."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, DRAW, index]))
    n = synthetic.num_pairs
    if synthetic.mapping == "fixed":
        pairs = list(zip(keys[:n], values, strict=True))
    else:
        chosen = [[pool[i] for i in rng.choice(len(pool), size=n, replace=False)] for pool in (keys, values)]
        pairs = list(zip(*chosen, strict=True))
    return pairs, pairs[int(rng.integers(n))]


def segments_of(synthetic: SyntheticSettings, pairs: Sequence[Pair]) -> list[Segment]:
    """A demonstration's text in parts with their roles."""
    lines = [
        part
        for key, value in pairs
        for part in ((key, "key"), (synthetic.arrow, "arrow"), (value, "value"), ("\n", "newline"))
    ]
    return [(synthetic.header, "header"), *lines, ("\n", "newline")]


def _sample(synthetic: SyntheticSettings, tokenizer: Any, index: int, pairs: Sequence[Pair], asked: Pair) -> OnSample:
    query = synthetic.query.replace("{key}", asked[0])
    values = [value for _, value in pairs]
    for one, other in combinations(values, 2):  # told apart by a first token, or the right answer needs no look-up
        candidates(tokenizer, query, one, [other])
    return on_sample(tokenizer, index, "", segments_of(synthetic, pairs), query, asked[1], values)
