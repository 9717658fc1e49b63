"""Where the goldens and trials that ship with the project lie: in the installed package, or in the checkout."""

from pathlib import Path

FIXED_TRIALS = Path("datasets", "fixed_trials")
TRIALS = {
    "tiny-llama": FIXED_TRIALS / "fixed_trials_tiny_antonym_t10_s10_seed0_tiny_llama.json",
    "tiny-gpt2": FIXED_TRIALS / "fixed_trials_tiny_antonym_t10_s10_seed0_tiny_gpt2.json",
}
DEFAULT_MODEL = "tiny-llama"

PACKAGED = Path(__file__).parent / "shipped"


def is_packaged() -> bool:
    """Whether goldens and trials lie inside the installed package. An editable install has them beside it."""
    return PACKAGED.is_dir()


def root() -> Path:
    """The folder that holds `golden/` and `datasets/`."""
    return PACKAGED if is_packaged() else PACKAGED.parents[1]


def trials_of(model: str, rootdir: Path) -> Path | None:
    """The trials file that ships for a shipped model; the project's own copy comes first."""
    if model not in TRIALS:
        return None
    places = (base / TRIALS[model] for base in (rootdir, root()))
    return next((place for place in places if place.is_file()), None)
