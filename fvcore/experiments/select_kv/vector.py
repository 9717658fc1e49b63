"""The function vector of the same trials: computed by the stations, injected behind each layer of the same queries."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from fvcore.artifacts import tensor_leaf
from fvcore.experiments.select_kv.bench import Bench
from fvcore.experiments.select_kv.data import Demo, OnSample
from fvcore.experiments.select_kv.metrics import is_hit
from fvcore.experiments.select_kv.points import share
from fvcore.injection import inject_logits
from fvcore.model.model import LanguageModel
from fvcore.model.tokenizer import BosFacts
from fvcore.pipeline import Settings, run
from fvcore.prompts import PromptTemplate
from fvcore.trials.fixed import FixedTrials, Meta, TrialRecord, TrialsFile, WordPair, labelled, prompt_data

TOP_HEADS = 10
LEAST = 2
"""Samples of a relation from which a vector is taken: of one trial, the mean activation is the activation."""


def vector_curve(bench: Bench, samples: Sequence[OnSample]) -> dict[str, Any]:
    """Accuracy of the bare query without a vector, and with the one of its relation behind each layer; the heads by layer.

    Empty where there is no vector to speak of: episodes that share no relation, another template, a model of no stations.
    """
    lm: LanguageModel | None = getattr(bench.runtime, "lm", None)
    adds_bos = BosFacts.of(bench.runtime.tokenizer).adds_bos
    groups = {name: list(some) for name, some in groupby(sorted(samples, key=_relation), key=_relation) if name}
    made = {name: trials_of(some, bench.settings.seed, adds_bos) for name, some in groups.items() if len(some) >= LEAST}
    if lm is None or not made or None in made.values():
        return {}
    hits, heads, names = list[list[bool]](), Counter[int](), list[str]()
    for name, trials in made.items():
        assert trials is not None
        rows, layers = _of_one(bench, lm, groups[name], trials)
        hits += rows
        heads.update(layers)
        names += [name] * len(rows)
    base, *behind = (share(list(column), names) for column in zip(*hits, strict=True))
    by_layer = [heads[layer] for layer in range(lm.n_layers)]
    return {"n": len(hits), "base": base, "layers": behind, "heads": by_layer, "top_heads": _n_heads(lm)}


def _of_one(
    bench: Bench, lm: LanguageModel, samples: Sequence[OnSample], trials: FixedTrials
) -> tuple[list[list[bool]], list[int]]:
    """Of each sample whether it is answered without and behind each layer; and the layers of the vector's heads."""
    stations = run(lm, trials, Settings(edit_layer=0, n_top_heads=_n_heads(lm)), injected=False)
    vector = tensor_leaf(stations["fv_vector"], "function_vector")
    logits = inject_logits(lm, [bench.base_ids(one.query_ids) for one in samples], [vector], range(lm.n_layers))
    hits = [[is_hit(arm, one.answer_ids) for arm in arms] for one, arms in zip(samples, logits.float(), strict=True)]
    heads: Any = stations["top_heads"]["heads"]
    return hits, [int(layer) for layer, _ in heads]


def _n_heads(lm: LanguageModel) -> int:
    return min(TOP_HEADS, len(lm.heads))


def _relation(sample: OnSample) -> str:
    return sample.relation


def trials_of(samples: Sequence[OnSample], seed: int, adds_bos: bool = False) -> FixedTrials | None:
    """Samples of one relation as fixed trials, labels shuffled; None where their text is no trial's."""
    import numpy as np

    meta = Meta(n_trials=len(samples), n_shots=len(pairs_of(samples[0].demo)), model_prepend_bos=adds_bos)
    records = []
    for idx, sample in enumerate(samples):
        rng = np.random.default_rng(np.random.SeedSequence([seed, 4, sample.index]))
        record = _record(idx, sample, meta, rng.permutation(meta.n_shots).tolist())
        if record is None:
            return None
        records.append(record)
    return FixedTrials(samples[0].relation, "", TrialsFile(meta=meta, trials=records))


def _record(idx: int, sample: OnSample, meta: Meta, order: Sequence[int]) -> TrialRecord | None:
    demos = pairs_of(sample.demo)
    if len(demos) != meta.n_shots:
        return None
    corrupted = labelled(demos, [demos[i].output for i in order])
    before, after = meta.prefixes.input, f"{meta.separators.input}{meta.prefixes.output}"
    word = sample.query_text.removeprefix(before).removesuffix(after)
    query = WordPair(input=word, output=f" {sample.answer}")
    template = PromptTemplate(meta.prefixes, meta.separators)
    clean = template.text(demos, word)
    if clean != sample.demo.text + sample.query_text:
        return None
    return TrialRecord(
        trial_id=idx,
        demos_clean=demos,
        demos_corrupted=corrupted,
        query=query,
        prompt_data_clean=prompt_data(demos, query, meta),
        prompt_data_corrupted=prompt_data(corrupted, query, meta),
        clean_prompt_str=clean,
        corrupted_prompt_str=template.text(corrupted, word),
        target_str=query.output,
        target_first_token_id=sample.full_answer_ids[0],
    )


def pairs_of(demo: Demo) -> list[WordPair]:
    """The demonstrations, each word behind its space, read off the roles of the tokens."""
    words = [(role, text) for role, text in _runs(demo) if role in ("key", "value")]
    paired = zip(words[::2], words[1::2], strict=False)
    return [WordPair(input=key, output=value) for (_, key), (_, value) in paired]


def _runs(demo: Demo) -> Iterator[tuple[str, str]]:
    """Neighbouring tokens of one role, as text."""
    for role, tokens in groupby(zip(demo.roles, demo.offsets, strict=True), key=lambda one: one[0]):
        ends = [end for _, end in tokens]
        yield role, demo.text[ends[0][0] : ends[-1][1]]
