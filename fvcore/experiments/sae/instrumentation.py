"""Two ways to read the residual stream of a context: the project's hooks, and the plan's, without any."""

from torch import Tensor

from fvcore.experiments.config import ConfigError
from fvcore.experiments.sae.bench import Bench
from fvcore.experiments.sae.schemas import Context
from fvcore.model.residual import hidden_states, residual_stream


def instrumented(bench: Bench, context: Context, last: int, instrumentation: str) -> dict[int, Tensor]:
    """Layer -> what leaves its block (token, d_model), up to `last`.

    hidden_states: as the plan reads it, without a hook, where entry `l + 1` is what leaves block `l`. Raises ConfigError
    for the last layer, of which the library shows what is behind the final norm.
    """
    if instrumentation == "hooks":
        return {layer: hidden[0] for layer, hidden in residual_stream(bench.lm, bench.ids(context), last=last).items()}
    if last == bench.lm.n_layers - 1:
        raise ConfigError(
            f"--instrumentation hidden_states: layer {last} is the last one, and the library shows it behind the final norm; "
            "expected an earlier layer, or hooks"
        )
    states = hidden_states(bench.lm, bench.ids(context))
    return {layer: states[layer + 1][0] for layer in range(last + 1)}
