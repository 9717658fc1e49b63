"""The test rig: tiny random models with the golden that engine `exact` gives on them.

A rig must not hide faults. Biases are drawn, because freshly made ones are zero; weights are large, because small ones
make all effects equal; models are in eval mode. Words have several tokens, inputs, outputs and queries alike; some
swallow the newline after them, some come twice in a prompt, and some corrupted labels stay where they were.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast

import torch

from fvcore.artifacts import Artifact
from fvcore.embedded.random_models import AWKWARD_PAIRS, RIG_TOKENIZERS, random_lm, random_model, trials_for
from fvcore.gates import StageResult, Suite, run_suite
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, Settings, profile_of, run
from fvcore.profile import Profile
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity.golden.golden import require_comparable
from pytest_fvparity.parity.at_hand import continuation_of, effects_in_both, log_effects_of
from pytest_fvparity.parity.checks import STAGES, ParityRun
from pytest_fvparity.parity.implementation import CHECK_KEYS, Answers, Implementation
from pytest_fvparity.parity.noise import Noise
from pytest_fvparity.parity.tolerances import Tolerances

FAMILIES = tuple(RIG_TOKENIZERS)

# With this seed the draws of three trials hold all that the docstring above asks for.
TRIALS: dict[str, Any] = {"n_trials": 3, "n_shots": 4, "seed": 3, "pairs": AWKWARD_PAIRS}


@dataclass(frozen=True)
class Recorded(Answers):
    """Artifacts in memory."""

    artifacts: dict[str, Artifact]

    def stored(self, key: str) -> Artifact:
        return self.artifacts[key]


@dataclass(frozen=True)
class Rig:
    """A model on its trials, the settings, what is right on them, and how much that may move by itself."""

    lm: LanguageModel
    trials: FixedTrials
    settings: Settings
    golden: Answers
    noise: Noise = field(default_factory=Noise)

    @classmethod
    def recorded(cls, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> Rig:
        """A rig whose golden is what the stations give on it."""
        return cls(lm, trials, settings, Recorded(run(lm, trials, settings)))

    def on(self, lm: LanguageModel, **settings: Any) -> Rig:
        """The same trials, with other settings if given, on another model; the golden is recorded anew."""
        return Rig.recorded(lm, self.trials, replace(self.settings, **settings))

    def in_dtype(self, dtype: torch.dtype, **settings: Any) -> Rig:
        return self.on(changed(self.lm, lambda hf: hf.to(dtype)), **settings)

    @property
    def family(self) -> str:
        return cast("str", self.lm.hf.config.model_type)

    @property
    def artifacts(self) -> dict[str, Artifact]:
        return {key: self.golden.artifact(key) for key in CHECK_KEYS}

    @property
    def profile(self) -> Profile:
        return profile_of(self.lm, self.trials, self.settings)

    def candidate(
        self,
        lm: LanguageModel | None = None,
        trials: FixedTrials | None = None,
        settings: Settings | None = None,
        base: type[Pipeline] = Pipeline,
        **stations: Any,
    ) -> Pipeline:
        """fvcore's pipeline with some methods replaced: `candidate(slot_map=lambda self, prompts: ...)`."""
        planted: type[Pipeline] = type("Planted", (base,), stations)
        return planted(lm or self.lm, trials or self.trials, settings or self.settings)

    def run(self, candidate: Implementation, repeat: int = 1) -> ParityRun:
        """What the six checks look at, as the plugin makes it."""
        tolerances = Tolerances.read(None, (), self.lm.dtype, self.lm.device.type, self.noise)
        how = {
            "model": self.lm.hf,
            "tokenizer": self.lm.tokenizer,
            "continuation": continuation_of(self.lm, self.golden, self.settings),
            "log_effects": log_effects_of(self.lm, self.golden, self.settings, tolerances),
        }
        return ParityRun(candidate, self.golden, tolerances, repeat=repeat, **how)

    def judge(self, candidate: Implementation, profile: Profile | None = None, repeat: int = 1) -> list[StageResult]:
        """The six checks, as the plugin runs them; `profile` is what the candidate says of itself."""

        def subject() -> ParityRun:
            require_comparable(self.profile, profile or self.profile)
            return self.run(candidate, repeat)

        return list(run_suite(Suite("parity", STAGES, subject)))


@cache
def rig_of(family: str, token_class_idx: int = -1) -> Rig:
    """The rig of a family; the same object each time, so nothing may change it."""
    lm = random_lm(family, RIG_TOKENIZERS[family], pairs=AWKWARD_PAIRS)
    # Faults are planted in what engine exact runs through.
    settings = Settings(edit_layer=1, n_top_heads=3, token_class_idx=token_class_idx, engine="exact")
    return Rig.recorded(lm, trials_for(lm, **TRIALS), settings)


@cache
def deep_rig_of(family: str) -> Rig:
    """24 heads, all of them ranked: enough for some to be equal to four decimals."""
    shallow = rig_of(family)
    tokenizer = shallow.lm.tokenizer
    lm = LanguageModel.wrap(random_model(family, len(tokenizer), n_layers=6), tokenizer, shallow.lm.name)
    return shallow.on(lm, n_top_heads=lm.n_layers * lm.n_heads)


def in_both(self: Pipeline, prompts: Artifact, slot_map: Artifact, mean_activations: Artifact) -> Artifact:
    """The station's leaves, and effects in log-probabilities beside them."""
    given = prompts, slot_map, mean_activations
    _, cie = effects_in_both(self.lm, *given, self.settings)
    return {**Pipeline.top_heads(self, *given), "cie_logprob": cie, "aie_logprob": cie.mean(dim=0)}


def changed(lm: LanguageModel, change: Callable[[Any], Any] = lambda hf: None) -> LanguageModel:
    """A copy whose Hugging Face model `change` has had in hand; a rig's own model stays as it is."""
    hf = copy.deepcopy(lm.hf)
    change(hf)
    return LanguageModel.wrap(hf, lm.tokenizer, lm.name)
