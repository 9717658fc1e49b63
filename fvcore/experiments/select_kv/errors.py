"""What stops a Select-KV run beside a failed gate."""

from fvcore.experiments.errors import StepError
from fvcore.model.spec import ModelError


class HFBackendUnavailable(ModelError):
    """The model, its tokenizer or its device cannot be had, and nothing takes its place."""


class SelectKVRuntimeError(StepError):
    """The model gives something else than the method needs: no attentions, other cache layers, numbers not finite."""


class UnsupportedPositioning(SelectKVRuntimeError):
    """Keys of this model cannot be carried to the positions that were asked for."""


class SelectionError(StepError):
    """No span of a demo may be chosen, or other tokens were chosen than the demo has."""
