"""The zero-shot snapshot: every sampled trial's query without its demonstrations, target found again at that boundary.

By default the prompt ends with the output prefix and the target begins with a space. With `trailing_space` the prompt is
the plan's literal text, a space at its end: the model reads that space, and the target, which then has none, is the
token that the boundary rule gives.
"""

from pathlib import Path
from typing import Any

from fvcore.experiments.errors import TargetError
from fvcore.experiments.folder import Folder
from fvcore.experiments.steps import layout
from fvcore.experiments.steps.sampled import QId, SampledTrial, SampledTrials
from fvcore.formats import FormatError, read_json, validated
from fvcore.model.model import LanguageModel
from fvcore.model.tokenizer import Tokenizer
from fvcore.prompts import BoundaryError, Prompt, PromptTemplate, prompt_at_boundary
from fvcore.provenance import now
from fvcore.trials.fixed import FileRecord


class Example(FileRecord):
    """What Step6 reads of a trial; a sampled-trials file with demonstrations is read the same way."""

    q_id: QId
    trial_idx: int
    trial_id: int
    corrupted_prompt_str: str
    target_str: str
    target_first_token_id: int

    def prompt(self, tokenizer: Tokenizer) -> Prompt:
        """The prompt as the model reads it, to the last space, and the answer at its boundary."""
        found = prompt_at_boundary(tokenizer, self.corrupted_prompt_str, self.target_str)
        if found.text == self.corrupted_prompt_str:
            return found
        literal = tuple(tokenizer(self.corrupted_prompt_str).input_ids)
        return Prompt(self.corrupted_prompt_str, literal, found.answer_ids)


def read(path: Path) -> list[Example]:
    value = read_json(path)
    rows = value.get("trials") if isinstance(value, dict) else None
    if not isinstance(rows, list) or not rows:
        raise FormatError(f"{path}: holds no trials; make the snapshot with `fvcore runtime zeroshot`")
    return validated(list[Example], rows, path)


def run(lm: LanguageModel, sampled: SampledTrials, trailing_space: bool, folder: Folder) -> list[Path]:
    """One row per sampled trial, in its order; no query is drawn again."""
    template = sampled.meta.template(lm.tokenizer)
    space = " " if trailing_space else ""
    meta = {
        "source_sampled_trials_path": layout.SAMPLED,
        "zero_shot": True,
        "prompt_format": template.text((), " <query>" if sampled.meta.prepend_space else "<query>") + space,
        "model": lm.name,
        "model_spec": lm.spec.name,
        "tok_add_special": sampled.meta.model_prepend_bos,
        "n_trials": len(sampled.trials),
        "generated_at": now(),
    }
    rows = [_row(trial, sampled, template, lm.tokenizer, space) for trial in sampled.trials]
    return folder.write({layout.ZERO_SHOT: {"meta": meta, "trials": rows}})


def _row(
    trial: SampledTrial, sampled: SampledTrials, template: PromptTemplate, tokenizer: Tokenizer, space: str
) -> dict[str, Any]:
    text = template.text((), trial.as_trial(sampled.meta.prepend_space).query.input) + space
    target = trial.target_str.strip() if space else " " + trial.target_str.strip()
    try:
        target_id = prompt_at_boundary(tokenizer, text, target).target_id
    except BoundaryError as error:
        raise TargetError(f"trial {trial.trial_id}:{trial.trial_idx}, zero-shot prompt: {error}") from None
    sources = {"query_source_index", "demo_source_indices", "demo_order"}
    return {
        **trial.model_dump(include={"q_id", "trial_idx", "query"}),
        "target_str": target,
        "target_first_token_id": target_id,
        "corrupted_prompt_str": text,
        "corrupted_full_str": text + target,
        **trial.model_dump(include=sources, exclude_none=True),
        "trial_id": trial.trial_id,
    }
