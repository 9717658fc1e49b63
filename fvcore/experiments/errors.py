"""What stops a production step."""

from __future__ import annotations


class StepError(Exception):
    """A target id, a shape, a prompt or a number is not what the step's own files say."""


class TrialMismatch(StepError):
    """A trial's prompts are not what its words give."""


class TokensError(StepError):
    """The tokenizer gives the prompts other ends, or other slots, than the steps build on."""


class TargetError(StepError):
    """A stored target is not what the tokenizer gives at the boundary."""


class NotFinite(StepError):
    """A score, a mean or a vector is not a finite number."""


class OtherSettings(StepError):
    """A folder holds results of other settings; they are never mixed."""
