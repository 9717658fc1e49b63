"""Why a run of Select-KV could not be judged; every one ends the command with its own status, never with a substitute."""

from fvcore.exits import UNJUDGED
from fvcore.experiments.errors import StepError


class SelectKVError(StepError):
    """The run has no verdict."""

    status = UNJUDGED


class HFBackendUnavailable(SelectKVError):
    """The model cannot be had as the settings ask: another backend, no device, no weights, a slow tokenizer."""


class SelectKVRuntimeError(SelectKVError):
    """The model does not do what the run stands on: no plain cache, no attentions, logits that are not finite."""


class UnsupportedPositioning(SelectKVError):
    """Keys cannot be moved to other positions in this model, or not as the settings ask."""


class OnTaskInvalid(SelectKVError):
    """The ON or OFF samples that the settings ask for do not exist, or their answers cannot be told apart."""


class SelectionError(SelectKVError):
    """No span of a demonstration may be chosen."""
