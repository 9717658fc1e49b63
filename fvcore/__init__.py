"""fvcore: function vectors on any Hugging Face causal language model.

The stations, in order: trials, prompts, slots, activations, effects, heads, vectors, injection; `pipeline` runs them
all. Nothing is imported here, so that a program pays only for the stations it uses.
"""

__version__ = "0.1.0"
