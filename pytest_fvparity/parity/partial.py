"""What a candidate may leave out of an artifact, and what it may say in another form; and the reference's side of both.

A leaf that is left out is said not to be provided, and everything that is there is compared. A leaf that is there for one
trial is provided: where it then lacks for another, that is a difference like any other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fvcore.gates import NotHeld

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.artifacts import Artifact
    from pytest_fvparity.parity.at_hand import LogEffects

LAST_SLOT = "last_slot"
"""Leaf of `mean_activations` in place of the one of its name: the means at the last slot alone, (layer, head, d_head)."""

IN_LOGPROB = "logprob"
"""What a candidate's attribute `effects` says where its effects are differences of log-probabilities."""

LACKS = "not provided: "
"""How the end of a partial key's message begins, which says what is lacking."""

HELD_TO = {"cie": "cie_logprob", "aie": "aie_logprob"}
"""Of such a candidate: leaf -> the one of the reference that it is, and whose tolerance counts."""

FURTHER = frozenset(HELD_TO.values())
"""Leaves that a recording holds for those who ask for them; nobody need provide them, and older recordings do not."""


@dataclass(frozen=True)
class Offered:
    """The part of the reference's artifact that a candidate's is compared with, what it lacks, and what to know of that."""

    expected: Artifact
    absent: str
    note: str = ""

    @property
    def own_ranking(self) -> bool:
        """Whether its heads are ranked by another quantity than the reference's, so that later keys take those."""
        return bool(self.note)


def offered(
    key: str, expected: Artifact, actual: Artifact, effects: Any = None, log_effects: LogEffects | None = None
) -> Offered:
    """effects: the candidate's own word for the quantity of its effects, if it has one"""
    want, note = dict(expected), ""
    lacking = dict[str, None]()
    if LAST_SLOT in actual and key not in actual and key in want:
        want[LAST_SLOT] = _tensor(want.pop(key))[:, :, -1]
        lacking[f"{key} of the other slots"] = None
    if key == "top_heads" and effects == IN_LOGPROB:
        want, note = (
            _in_logprob(want, log_effects),
            "effects are differences of log-probabilities, as the candidate says",
        )
    given = set(map(_of_run, actual))
    absent = [leaf for leaf in want if leaf not in actual and _of_run(leaf) not in given]
    lacking |= {_of_run(leaf): None for leaf in absent if not _optional(leaf)}
    return Offered({leaf: value for leaf, value in want.items() if leaf not in absent}, ", ".join(lacking), note)


def completed(key: str, expected: Artifact, actual: Artifact) -> Artifact:
    """A candidate's artifact for its own later keys: what it does not provide is the reference's."""
    whole = {**expected, **actual}
    if LAST_SLOT in actual and key not in actual and key in expected:
        means = _tensor(expected[key]).clone()
        means[:, :, -1] = _tensor(whole.pop(LAST_SLOT)).to(means)
        whole[key] = means
    return whole


def _optional(leaf: str) -> bool:
    """Facts of the tokenizer, which the harness knows by itself; and what is recorded for those who ask."""
    return leaf.startswith("bos/") or leaf in FURTHER


def _of_run(leaf: str) -> str:
    """A leaf's name without the trial that it is of."""
    from fvcore.artifacts import trial_of

    trial = trial_of(leaf)
    return leaf if trial is None else leaf.removeprefix(f"{trial}/")


def _in_logprob(expected: Mapping[str, Any], log_effects: LogEffects | None) -> dict[str, Any]:
    """The reference's effects and heads as differences of log-probabilities."""
    import torch

    from fvcore.effects import average_indirect_effect
    from fvcore.heads import top_heads

    if expected.keys() >= FURTHER:
        cie, aie = (expected[leaf] for leaf in HELD_TO.values())
    elif log_effects is not None:
        aie = average_indirect_effect(cie := log_effects())
    else:
        raise NotHeld("the golden holds no effects in log-probabilities (cie_logprob), and no model is at hand")
    heads = top_heads(aie, len(expected["heads"]))
    scores = torch.tensor([round(head.aie, 4) for head in heads], dtype=torch.float64)
    return {"cie": cie, "aie": aie, "heads": [[head.layer, head.head] for head in heads], "scores": scores}


def _tensor(value: Any) -> Tensor:
    tensor: Tensor = value
    return tensor
