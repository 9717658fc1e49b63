"""The stations in order, each saying what it found as an artifact: the candidate of the parity checks.

The methods are named after the check keys. Each takes the artifacts of the earlier keys it uses; whether those are
its own (chained) or the golden's (isolated) is decided by who calls it.
"""

from dataclasses import dataclass, field
from functools import cache, cached_property
from itertools import product
from typing import Any

import torch

from fvcore.artifacts import Artifact, Leaf, tensor_leaf, trial_of
from fvcore.effects import TOKEN_CLASSES, average_indirect_effect
from fvcore.fast import engines
from fvcore.fast.engines import ENGINES, why_not_fast
from fvcore.fast.screening import screened_top_heads
from fvcore.heads import top_heads
from fvcore.injection import N_GENERATED, generated_ids, injections, likelihoods
from fvcore.model.diagnostics import caveats
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError
from fvcore.profile import REFERENCE_PROFILES, TARGET_RULES, Conditions, Identity, Profile
from fvcore.prompts import REGIMES, UPSTREAM_BOS_TEXT, Prompt, PromptTemplate, require_bos_agreement, trial_prompt
from fvcore.provenance import model_identity, processor, versions
from fvcore.slots import SlotMap, dummy_labels, slot_map
from fvcore.trials.fixed import FixedTrials, Trial
from fvcore.vectors import function_vector, head_term


@dataclass(frozen=True, slots=True)
class Settings:
    """What is chosen beside model and trials. -1 as token class is the last token alone (rank 3).

    Without an `edit_layer` it is a third of the depth, as in the paper (section 2.3).

    `engine` is `fast`, where it holds for the model; `exact`, the reference's own arithmetic; or `screened`, which is `fast`
    and leaves the effects of heads at their estimates that these rule out of the top heads: no engine for a comparison. `max_memory` (bytes) bounds what
    `fast` takes beside the weights, half of what is free by default.
    """

    edit_layer: int | None = None
    n_top_heads: int = 10
    token_class_idx: int = -1
    alpha: float = 1.0
    reference_profile: str = "src"
    engine: str = "fast"
    max_memory: int | None = None

    def layer_of(self, lm: LanguageModel) -> int:
        """The block behind which the vector is added."""
        return lm.n_layers // 3 if self.edit_layer is None else self.edit_layer

    def require_fit(self, lm: LanguageModel) -> None:
        """Raise the one clear error a wrong setting deserves, before anything is computed."""
        lm.require_layer(self.layer_of(lm))
        n_heads = len(lm.heads)
        if not 1 <= self.n_top_heads <= n_heads:
            raise ModelError(f"{self.n_top_heads} top heads asked for, {lm.name} has {n_heads}; ask for 1 to {n_heads}")
        if not -1 <= self.token_class_idx < len(TOKEN_CLASSES):
            raise ModelError(f"token class {self.token_class_idx} is not in [-1, {len(TOKEN_CLASSES) - 1}]")
        if self.reference_profile not in REFERENCE_PROFILES:
            raise ModelError(
                f"unknown reference profile {self.reference_profile!r}; expected one of {', '.join(REFERENCE_PROFILES)}"
            )
        if self.engine not in ENGINES:
            raise ModelError(f"unknown engine {self.engine!r}; expected one of {', '.join(ENGINES)}")
        if self.engine == "screened" and self.token_class_idx != -1:
            raise ModelError("engine screened estimates effects at the last token alone, token class -1; use fast")


@dataclass(frozen=True)
class Pipeline:
    """The method on one model and one trials file.

    Leaves: per trial `<key>/<regime>/...` for prompts and slots, `<key>/...` for injection; tensors
    `mean_activations` (layer, head, slot, d_head), `cie` (trial, layer, head[, class]), `aie` (layer, head),
    `function_vector` (d_model,).
    """

    lm: LanguageModel
    trials: FixedTrials
    settings: Settings
    said: dict[str, list[str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def template(self) -> PromptTemplate:
        """What stands around the words of every prompt. Raises BosError where tokenizer and trials disagree about BOS."""
        facts = require_bos_agreement(self.lm.tokenizer, self.trials.meta)
        writes_bos = self.settings.reference_profile == "todd_upstream" and not facts.adds_bos
        return PromptTemplate.of(self.trials.meta, self.lm.tokenizer, UPSTREAM_BOS_TEXT if writes_bos else "")

    @cached_property
    def dummy_labels(self) -> list[str]:
        """The slots' labels, those of a prompt whose words are one token each."""
        meta = self.trials.meta
        return dummy_labels(self.lm.tokenizer, self.template, meta.n_shots, meta.model_prepend_bos)

    def prompt(self, trial: Trial, regime: str) -> Prompt:
        """A trial's prompt in a regime, `clean` or `corrupted`, with the ids of its answer."""
        return trial_prompt(self.lm.tokenizer, trial, self.template, regime)

    def slots(self, trial: Trial, regime: str) -> SlotMap:
        """Which slot each token of that prompt belongs to."""
        demos = trial.demos_by_regime[regime]
        return slot_map(
            self.lm.tokenizer,
            self.template,
            demos,
            trial.query.input,
            self.dummy_labels,
            self.trials.meta.model_prepend_bos,
            where=f"trial {trial.key}, {regime} prompt",
        )

    def require_room(self) -> None:
        """Raise ModelError where a prompt, with its answer or what is generated behind it, is more than the model reads."""
        more = N_GENERATED - 1  # the last token that is generated is not read any more
        for trial, regime in product(self.trials.trials, REGIMES):
            prompt = self.prompt(trial, regime)
            self.lm.require_room(prompt.boundary + max(more, len(prompt.answer_ids)))

    @property
    def engine(self) -> str:
        """The engine that gives the numbers."""
        return engines.chosen(self.lm, self.settings.engine)

    @property
    def _how(self) -> tuple[str, int | None]:
        return self.settings.engine, self.settings.max_memory

    def prompt_boundary(self) -> Artifact:
        """Station 1: what the tokenizer does with BOS, and text, ids, boundary and target of every prompt."""
        facts = require_bos_agreement(self.lm.tokenizer, self.trials.meta)
        leaves: dict[str, Leaf] = {
            "bos/adds_bos": facts.adds_bos,
            "bos/bos_token_id": facts.bos_token_id,
            "bos/without_special_tokens": facts.bos_without_special_tokens,
            "bos/appends_eos": facts.appends_eos,
        }
        for trial in self.trials.trials:
            prompts = {regime: self.prompt(trial, regime) for regime in REGIMES}
            for regime, prompt in prompts.items():
                where = f"{trial.key}/{regime}"
                leaves |= {
                    f"{where}/text": prompt.text,
                    f"{where}/input_ids": list(prompt.input_ids),
                    f"{where}/boundary": prompt.boundary,
                    f"{where}/answer_ids": list(prompt.answer_ids),
                    f"{where}/target_id": prompt.target_id,
                }
            upstream = self.settings.reference_profile == "todd_upstream"
            leaves[f"{trial.key}/target_id"] = prompts["corrupted"].target_id if upstream else trial.target_id
        return leaves

    def slot_map(self, prompts: Artifact) -> Artifact:
        """Station 2: the slot of every token, in both regimes."""
        leaves: dict[str, Leaf] = {"dummy_labels": [[i, label] for i, label in enumerate(self.dummy_labels)]}
        said = self.said["slot_map"] = list[str]()
        text_of = cache(lambda token: self.lm.tokenizer.decode([token]))
        for trial, regime in product(self.trials.trials, REGIMES):
            slots, where = self.slots(trial, regime), f"{trial.key}/{regime}"
            said += [f"{note} (trial {trial.key}, {regime} prompt)" for note in slots.notes]
            tokens = map(text_of, _leaf(prompts, f"{where}/input_ids"))
            labelled = enumerate(zip(tokens, slots.labels, strict=True))
            leaves |= {
                f"{where}/labels": [[i, token, label] for i, (token, label) in labelled],
                f"{where}/idx_map": [[token, slot] for token, slot in slots.idx_map.items()],
                f"{where}/idx_avg": [[label, *r] for label, r in slots.idx_avg.items()],
                f"{where}/full_idx_map": [[token, slot] for token, slot in sorted(slots.full_idx_map.items())],
                f"{where}/query_predictive_slot": slots.query_predictive_slot,
                f"{where}/query_predictive_token": slots.query_predictive_token,
            }
        return leaves

    def mean_activations(self, prompts: Artifact, slot_map: Artifact) -> Artifact:
        """Station 3: `mean_activations` (layer, head, slot, d_head) over the clean prompts."""
        clean = [
            (_leaf(prompts, f"{key}/clean/input_ids"), slots_of(slot_map, key, "clean")) for key in trial_keys(prompts)
        ]
        return {"mean_activations": engines.mean_head_activations(self.lm, clean, *self._how)}

    def top_heads(self, prompts: Artifact, slot_map: Artifact, mean_activations: Artifact) -> Artifact:
        """Station 4: effects of every trial and head, their mean `aie` (layer, head), and the best `heads` in order."""
        means = tensor_leaf(mean_activations, "mean_activations")
        cases = [(*_asked(prompts, key), slots_of(slot_map, key, "corrupted")) for key in trial_keys(prompts)]
        all_classes = self.settings.token_class_idx != -1
        if self.engine == "screened":
            n_top, most = self.settings.n_top_heads, self.settings.max_memory
            screening = screened_top_heads(self.lm, cases, means, n_top, max_memory=most)
            cie, self.said["top_heads"] = screening.cie, [f"engine screened: {screening}"]
        else:
            cie = engines.causal_indirect_effects(self.lm, cases, means, all_classes, *self._how)
        aie = average_indirect_effect(cie, self.settings.token_class_idx)
        heads = top_heads(aie, self.settings.n_top_heads, self.lm.head_layers)
        return {
            "cie": cie,
            "aie": aie,
            "heads": [[head.layer, head.head] for head in heads],
            # Rounded as the reference prints them; ranked before rounding.
            "scores": torch.tensor([round(head.aie, 4) for head in heads], dtype=torch.float64),
        }

    def fv_vector(self, mean_activations: Artifact, top_heads: Artifact) -> Artifact:
        """Station 5: `function_vector` (d_model,), its `norm`, and what each head adds, `head_terms` (rank, d_model)."""
        means, heads = tensor_leaf(mean_activations, "mean_activations"), _leaf(top_heads, "heads")
        vector = function_vector(self.lm, means, heads)
        terms = [head_term(self.lm, layer, head, means[layer, head, -1]).cpu() for layer, head in heads]
        return {"function_vector": vector.cpu(), "norm": float(vector.float().norm()), "head_terms": torch.stack(terms)}

    def injection_output(self, prompts: Artifact, fv_vector: Artifact) -> Artifact:
        """Station 6: of every trial the next token, its answer's likelihood and what is generated, without and with the vector."""
        vector = tensor_leaf(fv_vector, "function_vector").to(self.lm.device)
        where = (self.settings.layer_of(self.lm), self.settings.alpha)
        leaves: dict[str, Leaf] = {}
        keys = trial_keys(prompts)
        every, targets = zip(*(_asked(prompts, key) for key in keys), strict=True)
        answered = [
            Prompt("", tuple(ids), tuple(_leaf(prompts, f"{key}/corrupted/answer_ids")))
            for key, ids in zip(keys, every, strict=True)
        ]
        found = zip(
            keys,
            targets,
            injections(self.lm, every, targets, vector, *where, *self._how),
            likelihoods(self.lm, answered, vector, *where, *self._how),
            *(generated_ids(self.lm, every, added, *where, *self._how) for added in (None, vector)),
            strict=True,
        )
        for key, target, injection, likelihood, base_ids, with_ids in found:
            leaves |= {
                f"{key}/target_id": target,
                f"{key}/base_logprob": injection.base_logprob,
                f"{key}/with_logprob": injection.with_logprob,
                f"{key}/delta_logprob": injection.delta_logprob,
                f"{key}/base_logits": injection.base_logits,
                f"{key}/with_logits": injection.with_logits,
                f"{key}/base_nll": likelihood.base_nll,
                f"{key}/with_nll": likelihood.with_nll,
                f"{key}/base_generated": base_ids,
                f"{key}/with_generated": with_ids,
            }
        return leaves

    def notes(self, key: str) -> list[str]:
        """What is worth knowing about a key's artifact and is no difference: a warning each."""
        if key == "mean_activations" and self.settings.engine != self.engine:
            return [
                f"engine {self.settings.engine} does not hold for this model ({why_not_fast(self.lm)}): means and effects are "
                "those of exact"
            ]
        if key == "fv_vector":
            return caveats(self.lm)
        if key == "slot_map" and type(self).slot_map is not Pipeline.slot_map:
            return []  # what a subclass does at that key is not known here
        return self.said.get(key, [])


def profile_of(lm: LanguageModel, trials: FixedTrials, settings: Settings) -> Profile:
    """Identity and conditions of a run, measured from what was really loaded."""
    meta = trials.meta
    identity = Identity(
        trials_sha256=trials.sha256,
        dataset=trials.dataset,
        fixed_trials_id=trials.id,
        seed=meta.seed,
        n_shots=meta.n_shots,
        n_trials=len(trials.trials),
        template=f"{meta.prefixes.model_dump_json()} {meta.separators.model_dump_json()}",
        target_token_rule=TARGET_RULES[settings.reference_profile],
        reference_profile=settings.reference_profile,
        n_top_heads=settings.n_top_heads,
        token_class_idx=settings.token_class_idx,
        edit_layer=settings.layer_of(lm),
        alpha=settings.alpha,
        **model_identity(lm, Identity.model_fields),
    )
    conditions = Conditions(
        model=lm.name,
        engine=engines.chosen(lm, settings.engine),
        threads=torch.get_num_threads(),
        versions=versions(),
        processor=processor(str(lm.device)),
        **model_identity(lm, Conditions.model_fields),
    )
    return Profile(identity=identity, conditions=conditions)


def run(
    lm: LanguageModel, trials: FixedTrials, settings: Settings | None = None, injected: bool = True
) -> dict[str, Artifact]:
    """All stations in order, or all up to the function vector: check key -> artifact."""
    settings = settings or Settings()
    stations = Pipeline(lm, trials, settings)
    settings.require_fit(lm)
    prompts = stations.prompt_boundary()
    made = {"prompt_boundary": prompts}
    made["slot_map"] = stations.slot_map(prompts)
    made["mean_activations"] = stations.mean_activations(prompts, made["slot_map"])
    made["top_heads"] = stations.top_heads(prompts, made["slot_map"], made["mean_activations"])
    made["fv_vector"] = stations.fv_vector(made["mean_activations"], made["top_heads"])
    if injected:
        made["injection_output"] = stations.injection_output(prompts, made["fv_vector"])
    return made


def trial_keys(artifact: Artifact) -> list[str]:
    """The trials an artifact speaks of, in its order."""
    return list(dict.fromkeys(key for leaf in artifact if (key := trial_of(leaf)) is not None))


def slots_of(slot_map: Artifact, key: str, regime: str) -> SlotMap:
    """A prompt's SlotMap from its leaves."""

    labels, idx_map, idx_avg = (_leaf(slot_map, f"{key}/{regime}/{name}") for name in ("labels", "idx_map", "idx_avg"))
    return SlotMap(
        labels=tuple(label for _, _, label in labels),
        idx_map=dict(idx_map),
        idx_avg={label: (first, last) for label, first, last in idx_avg},
        n_slots=len(_leaf(slot_map, "dummy_labels")),
    )


def _asked(prompts: Artifact, key: str) -> tuple[list[int], int]:
    """A corrupted prompt's ids and its target."""
    return _leaf(prompts, f"{key}/corrupted/input_ids"), _leaf(prompts, f"{key}/target_id")


def _leaf(artifact: Artifact, leaf: str) -> Any:
    """What was read or made here, and has the type that the station gives it."""
    return artifact[leaf]
