"""Sampled trials as the model reads them, after the checks that StepD owes its readers.

A trial's prompts are written again and must equal the stored ones; the target is found again at the boundary; the last
token must be the one that predicts the answer, and hold the end of the output prefix; all trials must share one slot for it.
"""

from dataclasses import dataclass

from fvcore.experiments.errors import StepError, TargetError, TokensError, TrialMismatch
from fvcore.experiments.steps.sampled import SampledTrial, SampledTrials
from fvcore.model.model import LanguageModel
from fvcore.prompts import BosError, BoundaryError, Prompt, require_bos_agreement, trial_prompt
from fvcore.slots import SlotError, SlotMap, dummy_labels, slot_map


@dataclass(frozen=True, slots=True)
class Case:
    """One trial: both prompts and their slots."""

    trial: SampledTrial
    clean: Prompt
    corrupted: Prompt
    clean_slots: SlotMap
    corrupted_slots: SlotMap


@dataclass(frozen=True, slots=True)
class Cases:
    """All trials, as they were sampled too, and the label of every slot they share."""

    sampled: SampledTrials
    labels: tuple[str, ...]
    cases: tuple[Case, ...]

    @property
    def slot(self) -> int:
        """The slot that predicts the answer."""
        return self.cases[0].corrupted_slots.query_predictive_slot


def of(lm: LanguageModel, sampled: SampledTrials) -> Cases:
    """Raises StepError with the first check that fails, naming the trial."""
    meta = sampled.meta
    try:
        require_bos_agreement(lm.tokenizer, meta.as_trials_meta())
        template = meta.template(lm.tokenizer)
        labels = dummy_labels(lm.tokenizer, template, meta.n_shots, meta.model_prepend_bos)
        cases = tuple(_case(lm, sampled, trial, labels) for trial in sampled.trials)
    except (BoundaryError, BosError, SlotError) as error:
        raise StepError(str(error)) from None
    slots = {case.corrupted_slots.query_predictive_slot for case in cases}
    if len(slots) > 1:
        raise TokensError(f"the slot that predicts the answer is not one for all trials: {sorted(slots)}")
    return Cases(sampled, tuple(labels), cases)


def _case(lm: LanguageModel, sampled: SampledTrials, record: SampledTrial, labels: list[str]) -> Case:
    meta, tokenizer = sampled.meta, lm.tokenizer
    template, trial = meta.template(tokenizer), record.as_trial(meta.prepend_space)
    if len(trial.demos) != meta.n_shots:
        raise TrialMismatch(f"trial {trial.key}: {len(trial.demos)} demonstrations, meta.n_shots says {meta.n_shots}")
    prompts, slots = {}, {}
    for regime, stored in (("clean", trial.clean_prompt), ("corrupted", trial.corrupted_prompt)):
        prompt = trial_prompt(tokenizer, trial, template, regime)
        if prompt.text != stored:
            raise TrialMismatch(
                f"trial {trial.key}: {regime}_prompt_str is not what its words give; "
                f"expected {prompt.text[-40:]!r} at its end, found {stored[-40:]!r}"
            )
        demos = trial.demos if regime == "clean" else trial.corrupted_demos
        where = f"trial {trial.key}, {regime} prompt"
        query = trial.query.input
        slots[regime] = slot_map(tokenizer, template, demos, query, labels, meta.model_prepend_bos, where)
        # The last token is the end of the output prefix; a colon stands alone, as in the plan's template.
        last, prefix = tokenizer.decode([prompt.input_ids[-1]]), template.prefixes.output
        ends = last == ":" if prefix.endswith(":") else bool(last.strip()) and prefix.endswith(last.strip())
        if not ends:
            expected = "':'" if prefix.endswith(":") else f"the end of {prefix!r}"
            raise TokensError(f"{where}: the last token is {last!r}, expected {expected}")
        prompts[regime] = prompt
    found = prompts[meta.target_regime].target_id
    if found != trial.target_id:
        raise TargetError(
            f"trial {trial.key}: target_first_token_id is {trial.target_id}, the tokenizer gives {found} "
            f"({tokenizer.decode([found])!r}) behind the {meta.target_regime} prompt; sample the trials again"
        )
    return Case(record, prompts["clean"], prompts["corrupted"], slots["clean"], slots["corrupted"])
