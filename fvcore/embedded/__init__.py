"""The two tiny in-context-learning models that ship with the project, and the recipe that trains them.

`words` says what they know, `tokenizer` how they read, `batches`, `objectives` and `train` how they came to be,
`gate` what they must still do. `wired` is a third model, which was never trained. This file imports no torch: asking
where a model lies stays cheap.
"""

from pathlib import Path

EMBEDDED = ("tiny-llama", "tiny-gpt2")
WIRED = "wired"
"""A model that is made of formulas when it is asked for, and lies nowhere; `wired` says what it does."""


def path_of(name: str) -> Path:
    """The directory of a shipped model, as `from_pretrained` takes it."""
    if name not in EMBEDDED:
        raise ValueError(f"no embedded model {name!r}; shipped are: {', '.join(EMBEDDED)}")
    return Path(__file__).parent / name
