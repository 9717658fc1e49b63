"""fvcore's own pipeline where nobody gave a candidate: its report says so first."""

from fvcore.pipeline import Pipeline


class NoCandidate(Pipeline):
    """What is judged in a candidate's place; a Pipeline that a user gives is another class."""
