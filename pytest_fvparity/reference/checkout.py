"""A checkout of the public reference: where to get one, what it needs, which families it knows. Imports no torch."""

import subprocess
from importlib.util import find_spec
from pathlib import Path

from fvcore.gates import StageError

REPOSITORY = "https://github.com/ericwtodd/function_vectors"
GET_ONE = f"get one with `git clone {REPOSITORY}` and pass its path as --fv-src (or ini `fv_src`)"
NEEDED = ("src/utils/extract_utils.py", "src/compute_indirect_effect.py")

# The reference branches on substrings of a model's name. These names reach the branch that fits a family; "llama" is
# the one for blocks with `self_attn.o_proj` and no projection bias.
BRANCHES = {
    "gpt2": "gpt2-xl",
    "gptj": "gpt-j",
    "gpt_neox": "gpt-neox",
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "llama",
    "qwen3": "llama",
}


class RecordingError(StageError):
    """The reference could not be run, or what it gave must not be recorded."""


def require_checkout(path: Path | None) -> Path:
    """The checkout's root; raises with the way to get one."""
    if path is None:
        raise RecordingError(f"recording needs a checkout of the reference: {GET_ONE}")
    if missing := [name for name in NEEDED if not (path / name).is_file()]:
        raise RecordingError(f"{path} is no checkout of the reference (missing: {', '.join(missing)}); {GET_ONE}")
    return path.resolve()


IMPORTED = {"pandas": "pandas", "sklearn": "scikit-learn", "tqdm": "tqdm"}
"""What the reference imports beside torch and transformers: module -> package."""


def lacking() -> list[str]:
    """The packages that it needs and this interpreter has not."""
    return [package for module, package in IMPORTED.items() if find_spec(module) is None]


def commit_of(root: Path) -> str:
    """The checkout's commit, or "unknown" for a copy without history (its files are digested either way)."""
    words = ["git", "-C", str(root), "rev-parse", "HEAD", "--show-toplevel"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    commit, _, top = done.stdout.strip().partition("\n")
    return commit if done.returncode == 0 and Path(top).resolve() == root else "unknown"
