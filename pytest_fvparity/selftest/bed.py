"""The test bed: tiny random models with the golden that engine `exact` gives on them.

A bed must not hide faults. Biases are drawn, because freshly made ones are zero; weights are large, because small ones
make all effects equal; models are in eval mode. Words have several tokens, inputs, outputs and queries alike; some
swallow the newline after them, some come twice in a prompt, and some corrupted labels stay where they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fvcore.artifacts import Artifact
from fvcore.embedded.random_models import AWKWARD_PAIRS, BED_TOKENIZERS, random_lm, trials_for
from fvcore.gates import StageResult, Suite, run_suite
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, Settings, profile_of, run
from fvcore.profile import Profile
from fvcore.trials import FixedTrials
from pytest_fvparity.golden.golden import require_comparable
from pytest_fvparity.parity.checks import STAGES, ParityRun
from pytest_fvparity.parity.implementation import Answers, Implementation
from pytest_fvparity.parity.refinements import continuation_of
from pytest_fvparity.parity.tolerances import Tolerances

FAMILIES = tuple(BED_TOKENIZERS)

# With this seed the draws of three trials hold all that the docstring above asks for.
TRIALS: dict[str, Any] = {"n_trials": 3, "n_shots": 4, "seed": 3, "pairs": AWKWARD_PAIRS}


@dataclass(frozen=True)
class Recorded(Answers):
    """Artifacts in memory."""

    artifacts: dict[str, Artifact]

    def stored(self, key: str) -> Artifact:
        return self.artifacts[key]


@dataclass(frozen=True)
class Bed:
    """One model, its trials, the settings, and what is right on them."""

    family: str
    lm: LanguageModel
    trials: FixedTrials
    settings: Settings
    golden: Recorded

    @property
    def profile(self) -> Profile:
        return profile_of(self.lm, self.trials, self.settings)

    def candidate(self, **stations: Callable[..., Any]) -> Pipeline:
        """fvcore's pipeline with some methods replaced: `candidate(slot_map=lambda self, prompts: ...)`."""
        planted: type[Pipeline] = type("Planted", (Pipeline,), stations)
        return planted(self.lm, self.trials, self.settings)

    def judge(self, candidate: Implementation, profile: Profile | None = None, repeat: int = 1) -> list[StageResult]:
        """The six checks, as the plugin runs them; `profile` is what the candidate says of itself."""

        def subject() -> ParityRun:
            require_comparable(self.profile, profile or self.profile)
            conditions = self.profile.conditions
            tolerances = Tolerances.read(None, (), self.lm.dtype, conditions.device)
            continuation = continuation_of(self.lm, self.golden, self.settings)
            how = {"model": self.lm.hf, "continuation": continuation, "repeat": repeat}
            return ParityRun(candidate, self.golden, tolerances, **how)

        return list(run_suite(Suite("parity", STAGES, subject)))


@cache
def bed(family: str, token_class_idx: int = -1) -> Bed:
    """The bed of a family; the same object each time, so nothing may change it."""
    lm = random_lm(family, BED_TOKENIZERS[family], pairs=AWKWARD_PAIRS)
    # Faults are planted in what engine exact runs through.
    settings = Settings(edit_layer=1, n_top_heads=3, token_class_idx=token_class_idx, engine="exact")
    return bed_of(family, lm, trials_for(lm, **TRIALS), settings)


def bed_of(family: str, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> Bed:
    """A bed of one's own making."""
    return Bed(family, lm, trials, settings, Recorded(run(lm, trials, settings)))


def beds(families: Sequence[str] = FAMILIES) -> list[Bed]:
    return [bed(family) for family in families]
