"""The one language of candidate, reference and golden: six methods, named like the check keys."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    from fvcore.artifacts import Artifact

# Check key -> the earlier keys whose artifacts its method takes, in order.
INPUTS: dict[str, tuple[str, ...]] = {
    "prompt_boundary": (),
    "slot_map": ("prompt_boundary",),
    "mean_activations": ("prompt_boundary", "slot_map"),
    "top_heads": ("prompt_boundary", "slot_map", "mean_activations"),
    "fv_vector": ("mean_activations", "top_heads"),
    "injection_output": ("prompt_boundary", "fv_vector"),
}

CHECK_KEYS = tuple(INPUTS)

# Keys whose leaves belong to single trials; `--fv-max-trials` shortens these and no others.
PER_TRIAL_KEYS = frozenset({"prompt_boundary", "slot_map", "injection_output"})


NO_CANDIDATE = "fvcore.pipeline.Pipeline, for no candidate was given"
"""What a report calls the candidate that nobody gave."""

LIVE = "(live)"
"""What a report calls the golden's place where the candidate was compared with the reference as it ran."""


@runtime_checkable
class Implementation(Protocol):
    """An implementation of the method, as the checks see it."""

    def prompt_boundary(self) -> Artifact:
        """Text, ids, boundary and target of every prompt, and what the tokenizer does with BOS."""

    def slot_map(self, prompts: Artifact, /) -> Artifact:
        """Which slot each token of each prompt belongs to, and what is averaged to one."""

    def mean_activations(self, prompts: Artifact, slot_map: Artifact, /) -> Artifact:
        """`mean_activations` (layer, head, slot, d_head), fp32; or `last_slot` (layer, head, d_head)."""

    def top_heads(self, prompts: Artifact, slot_map: Artifact, mean_activations: Artifact, /) -> Artifact:
        """`cie` (trial, layer, head), `aie` (layer, head), `heads` and `scores` in rank order."""

    def fv_vector(self, mean_activations: Artifact, top_heads: Artifact, /) -> Artifact:
        """`function_vector` (d_model,), its `norm`, `head_terms` (rank, d_model)."""

    def injection_output(self, prompts: Artifact, fv_vector: Artifact, /) -> Artifact:
        """Per trial logits, log-probabilities, likelihoods and generated ids, without and with the vector."""


def copied(artifact: Artifact) -> Artifact:
    """The same leaves in tensors and lists of their own."""
    return {leaf: _own(value) for leaf, value in artifact.items()}


PLAIN = frozenset({int, float, str, bool, type(None)})


def _own(value: Any) -> Any:
    if isinstance(value, list):  # of which there are many, and `deepcopy` is slow
        return [item if type(item) in PLAIN else _own(item) for item in value]
    # A tensor made in inference mode cannot be edited or deep-copied elsewhere; its clone can.
    return value.clone() if hasattr(value, "clone") else deepcopy(value)


def _method(key: str) -> Callable[..., Artifact]:
    def method(self: ByKey, *inputs: Artifact) -> Artifact:
        return self.artifact(key, *inputs)

    return method


class ByKey(ABC):
    """An Implementation whose six methods are one, told the key."""

    @abstractmethod
    def artifact(self, key: str, *inputs: Artifact) -> Artifact: ...

    prompt_boundary = _method("prompt_boundary")
    slot_map = _method("slot_map")
    mean_activations = _method("mean_activations")
    top_heads = _method("top_heads")
    fv_vector = _method("fv_vector")
    injection_output = _method("injection_output")


class Answers(ByKey):
    """An Implementation that has all its answers already and looks at no input: a recording, a golden.

    Every answer is a copy: whoever edits one changes nothing that is compared later.
    """

    artifacts: Mapping[str, Artifact]

    def stored(self, key: str) -> Artifact:
        return self.artifacts[key]

    def artifact(self, key: str, *_: Artifact) -> Artifact:
        return copied(self.stored(key))
