"""A stand-in for a checkout of the reference: its function names and conventions in a few lines of our own.

`stand_in/` behaves like the public repository as it stands. `plant` writes a copy of it, or of one of its variants.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fvcore.embedded.random_models import random_lm, trials_for
from fvcore.formats import sha256_file
from fvcore.model import model as models
from fvcore.model.model import LanguageModel
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity.reference import driver
from pytest_fvparity.reference.reference import RecordingError

TREE = Path(__file__).with_name("stand_in")

INTERVENTION, EXTRACT = "src/utils/intervention_utils.py", "src/utils/extract_utils.py"
PROMPT, EFFECT = "src/utils/prompt_utils.py", "src/compute_indirect_effect.py"

# Variant -> what is appended to which file.
VARIANTS: dict[str, dict[str, str]] = {
    "plain": {},
    # It behaves as wanted already: no BOS text, tensors are edited too, and the vector is cast before it is added.
    "modified": {
        PROMPT: """
with_bos_text = word_pairs_to_prompt_data


def word_pairs_to_prompt_data(*args, prepend_bos_token=False, **options):
    return with_bos_text(*args, **options)
""",
        INTERVENTION: """

def add_function_vector(edit_layer, fv_vector, device, idx=-1):
    def add(output, layer_name):
        if layer_number(layer_name) == edit_layer:
            hidden = output[0] if isinstance(output, tuple) else output
            hidden[:, idx] += fv_vector.to(hidden)
        return output

    return add
""",
    },
    # Not even a tuple is edited.
    "no injection": {
        INTERVENTION: """

def add_function_vector(edit_layer, fv_vector, device, idx=-1):
    return lambda output, layer_name: output
"""
    },
    # The edit is right, and a vector of zeros is handed to it.
    "zero vector": {
        INTERVENTION: """
intervene = function_vector_intervention


def function_vector_intervention(sentence, target, edit_layer, function_vector, *args, **options):
    return intervene(sentence, target, edit_layer, 0 * function_vector, *args, **options)
"""
    },
    "no replacement": {
        INTERVENTION: """

def replace_activation_w_avg(*args):
    return lambda output, layer_name: output
"""
    },
    "no activations": {
        EXTRACT: """
read = gather_attn_activations


def gather_attn_activations(*args):
    return 0 * read(*args)
"""
    },
    "labels shifted": {
        PROMPT: """
label_all = tokenize_labels


def tokenize_labels(*args):
    return label_all(*args)[1:]
"""
    },
    "slots merged": {
        PROMPT: """
label_dummy = get_dummy_token_labels


def get_dummy_token_labels(*args, **options):
    return label_dummy(*args, **options)[1:]
"""
    },
    "fewer trials": {
        EXTRACT: """
all_trials = get_mean_head_activations


def get_mean_head_activations(*args, N_TRIALS, **options):
    return all_trials(*args, N_TRIALS=N_TRIALS - 1, **options)
"""
    },
    "function missing": {PROMPT: "\ndel get_dummy_token_labels\n"},
    "module missing": {EFFECT: "\nimport a_module_nobody_has\n"},
    "broken": {EFFECT: "\nraise ValueError('a fault of its own')\n"},
    "no checkout": {},
}


def plant(directory: Path, variant: str = "plain") -> Path:
    """A copy of the tree in `directory`, changed as `variant` says."""
    root = directory / variant.replace(" ", "_")
    shutil.copytree(TREE, root, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in VARIANTS[variant].items():
        with (root / name).open("a") as file:
            file.write(text)
    if variant == "no checkout":
        (root / EFFECT).unlink()
    return root


def digests(root: Path) -> dict[str, str]:
    """Every file below `root` with its digest; folders too, with none."""
    return {p.relative_to(root).as_posix(): sha256_file(p) if p.is_file() else "" for p in sorted(root.rglob("*"))}


def saved(family: str, directory: Path, seed: int = 0) -> LanguageModel:
    """A tiny random model loaded from disk, as the reference's process will load it."""
    directory.mkdir(parents=True, exist_ok=True)
    random_lm(family, seed=seed, directory=directory)
    return models.load(str(directory))


def saved_trials(lm: LanguageModel, directory: Path) -> FixedTrials:
    """Trials under the model's tokenizer, written to disk and read back."""
    fixed = trials_for(lm, n_trials=2, n_shots=2)
    path = directory / "fixed_trials_pairs.json"
    trials.write(path, fixed.file)
    return trials.read(path)


def start_here(_: str, path: Path, *__: Any) -> None:
    """The driver without a process of its own, in the place of `reference._start`."""
    job, n_threads = json.loads(path.read_text()), torch.get_num_threads()
    try:
        with imported_for_a_while(), torch.no_grad():
            torch.save(driver.Recorder(job).record(), job["out"])
    except driver.RecordingRefused as refusal:
        raise RecordingError(str(refusal)) from None
    finally:
        torch.set_num_threads(n_threads)


@contextmanager
def imported_for_a_while() -> Iterator[None]:
    """What a checkout brings into this process is gone when the block ends."""
    path, writes_no_bytecode = list(sys.path), sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path[:], sys.dont_write_bytecode = path, writes_no_bytecode
        brought = {"utils", "compute_indirect_effect", "baukit", "bitsandbytes"}
        for name in [name for name in sys.modules if name.partition(".")[0] in brought]:
            del sys.modules[name]
