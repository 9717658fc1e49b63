"""Checkpoints and response logs of a real model: what it answers as it is, and with one feature set to another value.

Two prompts, called safe and risky as in the plan, ask the same question behind demonstrations of two relations. A feature is
set, at every token that stands for text, to its mean under the other prompt (a patch) or under its own (the plan's
amplification), and the model goes on with the prompt by sampling. A feature counts as causal where the share of the usual
answers changes by more than `LEAST` with p < .05, as in the plan: without any correction.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from fvcore.embedded.words import relations
from fvcore.experiments.sae.autoencoder import SAE
from fvcore.experiments.sae.generate import CHECKPOINTS, CONDITIONS, LOGS
from fvcore.experiments.statistics import fisher
from fvcore.fast.chunks import Advance
from fvcore.formats import write_json
from fvcore.model.hooks import replace_outputs
from fvcore.model.model import LanguageModel
from fvcore.model.prefix import cache_given
from fvcore.model.residual import residual_stream

LEAST, ALPHA = 0.1, 0.05


@dataclass(frozen=True)
class Asked:
    """relations: of the safe and the risky prompt     n_tokens: of a response     per_layer: features tried in a layer"""

    relations: tuple[str, str] = ("antonym", "next_adjective")
    question: str = "hot"
    shots: int = 4
    trials: int = 40
    n_tokens: int = 16
    temperature: float = 1.5
    per_layer: int = 10
    seed: int = 0

    def prompts(self) -> dict[str, str]:
        """Type -> text; it ends where the answer begins."""
        return {kind: self._prompt(name) for kind, name in zip(("safe", "risky"), self.relations, strict=True)}

    def _prompt(self, name: str) -> str:
        pairs = {word: answer for word, answer in relations()[name].items() if word != self.question}
        shown = Random(self.seed).sample(sorted(pairs), self.shots)
        return "".join(f"Q: {word}\nA: {pairs[word]}\n\n" for word in shown) + f"Q: {self.question}\nA:"


@dataclass
class Setting:
    """A feature a row (row,), set to a value a row at every token of a prompt but the first `n_special`, and of its response.

    It follows a batch whose rows are repeated: `repeat`.
    """

    sae: SAE
    features: Tensor
    values: Tensor
    n_special: int

    def repeat(self, n: int) -> None:
        self.features, self.values = self.features.repeat_interleave(n), self.values.repeat_interleave(n)

    def __call__(self, hidden: Tensor) -> Tensor:
        """(row, token, d_model) -> the same, with the error of the autoencoder kept."""
        found = self.sae.encode(hidden).gather(-1, self.features[:, None, None].expand(-1, hidden.shape[1], 1))
        change = self.values[:, None, None] - found
        if hidden.shape[1] > 1:
            change[:, : self.n_special] = 0
        return hidden + (change * self.sae.w_dec[self.features][:, None]).to(hidden.dtype)


@dataclass(frozen=True)
class Logged:
    """A model that is asked, with the autoencoders whose features are set."""

    lm: LanguageModel
    saes: Mapping[int, SAE]
    asked: Asked

    def write(self, root: Path, advance: Advance = lambda layer, n_rows: None) -> None:
        """Write checkpoints and logs below `root`, where `CHECKPOINTS` and `LOGS` of generated data find them."""
        results = []
        for layer in sorted(self.saes):
            records, of_layer = self._tried(layer)
            write_json(root / LOGS.replace("*", f"responses_L{layer:02d}"), records)
            results += of_layer
            advance(layer, 1)
            told = {"timestamp": f"20250101_{layer:06d}", "features_tested": len(results), "results": list(results)}
            write_json(root / CHECKPOINTS.replace("*", f"{layer:03d}"), told)

    @cached_property
    def ids(self) -> dict[str, Tensor]:
        """Prompt type -> (1, token)."""
        return {kind: self.lm.ids(self.lm.tokenizer(text).input_ids) for kind, text in self.asked.prompts().items()}

    @cached_property
    def n_special(self) -> int:
        return int(self.lm.tokenizer("").input_ids != [])

    @cached_property
    def baselines(self) -> dict[str, Tensor]:
        """Prompt type -> ids of responses (trial, token), in which activity is measured; those in the logs are others."""
        return {kind: self._responses(kind, f"{kind} baseline", 1)[0] for kind in self.ids}

    @cached_property
    def streams(self) -> dict[str, dict[int, Tensor]]:
        """Prompt type -> layer -> the residual stream of prompts with their responses (trial, token, d_model)."""
        whole = {
            kind: torch.cat([ids.expand(self.asked.trials, -1), self.baselines[kind]], 1)
            for kind, ids in self.ids.items()
        }
        return {kind: residual_stream(self.lm, ids) for kind, ids in whole.items()}

    def _responses(self, kind: str, draw: str, n: int, setting: Setting | None = None, layer: int = 0) -> Tensor:
        """(n, trial, token) sampled ids, a feature set in each of the n; prompts are computed once, and their caches repeated."""
        from transformers import DynamicCache

        asked, cache, found = self.asked, DynamicCache(), []
        random = torch.Generator().manual_seed(Random(f"{asked.seed}|{draw}").getrandbits(31))
        ids = self.ids[kind].expand(n, -1)
        edited, edit = ([layer], setting) if setting else ([], lambda hidden: hidden)
        with torch.no_grad(), replace_outputs(self.lm, edited, "a feature's setting", lambda _, h: edit(h)):
            for at in range(asked.n_tokens):
                logits = self.lm.hf(input_ids=ids, **cache_given(self.lm.hf, cache), use_cache=True).logits[:, -1]
                if not at:
                    cache.batch_repeat_interleave(asked.trials)
                    logits = logits.repeat_interleave(asked.trials, 0)
                    if setting:
                        setting.repeat(asked.trials)
                shares = torch.softmax(logits.float().cpu() / asked.temperature, -1)
                ids = shares.multinomial(1, generator=random).to(self.lm.device)
                found.append(ids)
        return torch.cat(found, 1).reshape(n, asked.trials, -1)

    def _tried(self, layer: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Records of every trial of a layer's features, and their results."""
        activity = {kind: self._activity(kind, layer) for kind in self.ids}
        strongest = self._strongest(activity)
        features = torch.tensor([feature for feature, _ in strongest], device=self.lm.device)
        texts: dict[str, list[list[str]]] = {}
        for condition, (kind, source) in CONDITIONS.items():
            values = activity[source].mean(0)[features] if source else None
            setting = None if values is None else Setting(self.saes[layer], features, values, self.n_special)
            ids = self._responses(kind, f"L{layer} {condition}", len(strongest), setting, layer)
            texts[condition] = [self.lm.tokenizer.batch_decode(of_feature) for of_feature in ids]
        records, results = [], []
        for at, (feature, d) in enumerate(strongest):
            own = {condition: of_features[at] for condition, of_features in texts.items()}
            records += [
                {"feature": f"L{layer}-{feature}", "condition": condition, "trial": trial, "response": text}
                for condition, responses in own.items()
                for trial, text in enumerate(responses)
            ]
            results.append(_result(layer, feature, d, own))
        return records, results

    def _activity(self, kind: str, layer: int) -> Tensor:
        """(trial, feature): the mean over tokens that stand for text."""
        return self.saes[layer].encode(self.streams[kind][layer][:, self.n_special :]).mean(1)

    def _strongest(self, activity: Mapping[str, Tensor]) -> list[tuple[int, float]]:
        """Features by |Cohen's d| between the prompts, of those that the prompts differ in."""
        safe, risky = activity["safe"], activity["risky"]
        spread = ((safe.var(0) + risky.var(0)) / 2).sqrt()
        d = torch.where(spread > 0, (risky.mean(0) - safe.mean(0)) / spread, 0)
        first = sorted(range(len(d)), key=lambda at: (-abs(float(d[at])), at))[: self.asked.per_layer]
        return [(at, float(d[at])) for at in first if d[at]]


def _result(layer: int, feature: int, d: float, texts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    tests = {kind: _changed(texts, kind, other) for kind, other in (("safe", "risky"), ("risky", "safe"))}
    return {
        "feature": f"L{layer}-{feature}",
        "layer": layer,
        "feature_id": feature,
        "cohen_d": d,
        "is_causal": any(abs(effect) > LEAST and p < ALPHA for effect, p in tests.values()),
        **{f"{kind}_effect_size": effect for kind, (effect, _) in tests.items()},
        **{f"{kind}_p_value": p for kind, (_, p) in tests.items()},
    }


def _changed(texts: Mapping[str, Sequence[str]], kind: str, other: str) -> tuple[float, float]:
    """By how much the share of a prompt's usual answer changes under the patch, and Fisher's p of it."""
    before, after = (
        [text.split("\n")[0] for text in texts[name]] for name in (f"{kind}_baseline", f"{kind}_with_{other}_patch")
    )
    usual = Counter(before).most_common(1)[0][0]
    hits = [sum(one == usual for one in answers) for answers in (after, before)]
    n = len(before)
    return (hits[0] - hits[1]) / n, fisher(hits[0], n - hits[0], hits[1], n - hits[1])
