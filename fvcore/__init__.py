"""fvcore: function vectors on any Hugging Face causal language model.

    lm = fvcore.load("tiny-llama")
    artifacts = fvcore.run(lm, fvcore.make_trials(lm, pairs))

Each station of the method is here by itself, in the order of the data; `Pipeline` joins them. Nothing is imported before
it is asked for, so that a program pays only for the stations it uses.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fvcore.activations import mean_head_activations as mean_head_activations
    from fvcore.decoding import top_tokens as top_tokens
    from fvcore.effects import average_indirect_effect as average_indirect_effect
    from fvcore.effects import causal_indirect_effect as causal_indirect_effect
    from fvcore.heads import top_heads as top_heads
    from fvcore.injection import inject as inject
    from fvcore.injection import inject_generate as inject_generate
    from fvcore.injection import inject_logits as inject_logits
    from fvcore.injection import inject_nll as inject_nll
    from fvcore.model.model import LanguageModel as LanguageModel
    from fvcore.model.model import load as load
    from fvcore.pipeline import Pipeline as Pipeline
    from fvcore.pipeline import Settings as Settings
    from fvcore.pipeline import run as run
    from fvcore.prompts import PromptTemplate as PromptTemplate
    from fvcore.prompts import make_trials as make_trials
    from fvcore.prompts import trial_prompt as trial_prompt
    from fvcore.slots import dummy_labels as dummy_labels
    from fvcore.slots import slot_map as slot_map
    from fvcore.trials import fixed as _fixed
    from fvcore.vectors import function_vector as function_vector
    from fvcore.vectors import load_vector as load_vector
    from fvcore.vectors import save_vector as save_vector

    read_trials = _fixed.read

__version__ = "0.1.0"

_HOMES = {
    "model.model": ("LanguageModel", "load"),
    "trials.fixed": ("read_trials",),
    "prompts": ("PromptTemplate", "make_trials", "trial_prompt"),
    "slots": ("dummy_labels", "slot_map"),
    "activations": ("mean_head_activations",),
    "effects": ("average_indirect_effect", "causal_indirect_effect"),
    "heads": ("top_heads",),
    "vectors": ("function_vector", "load_vector", "save_vector"),
    "decoding": ("top_tokens",),
    "injection": ("inject", "inject_generate", "inject_logits", "inject_nll"),
    "pipeline": ("Pipeline", "Settings", "run"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [*_HOME_OF, "__version__"]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'fvcore' has no attribute {name!r}; it offers {', '.join(_HOME_OF)}")
    return getattr(import_module(f"fvcore.{_HOME_OF[name]}"), "read" if name == "read_trials" else name)


def __dir__() -> list[str]:
    return [*__all__, *(name for name in globals() if name.startswith("__"))]
