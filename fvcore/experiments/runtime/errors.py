"""What stops a production step."""

from __future__ import annotations


class StepError(Exception):
    """A target id, a shape, a prompt or a number is not what the step's own files say."""


class OtherSettings(StepError):
    """A folder holds results of other settings; they are never mixed."""
