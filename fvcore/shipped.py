"""What ships with the project beside its models, where it lies, and by which names it is asked for.

`tiny-llama`, as trials, is the fixed trials of that model; `antonym` the dataset of that name; `relationA_ex` the relation
file. All of it lies in the installed package, or in the checkout.
"""

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
    return PACKAGED if is_packaged() else PACKAGED.parent.parent


def file(given: Path | str) -> Path:
    """A file or folder that is there, as given; else what ships under that name or relative path; else as given."""
    path = Path(given)
    name, datasets = path.name, Path("datasets")
    places = (
        [path]
        if len(path.parts) > 1
        else [datasets / name / "raw" / f"{name}.json", datasets / "relation" / f"{name}.csv"]
    )
    if path.exists() or path.is_absolute() or ".." in path.parts:
        return path
    return next(
        (found for place in (TRIALS.get(str(given)), *places) if place and (found := root() / place).exists()), path
    )


def trials_of(model: str, rootdir: Path) -> Path | None:
    """The trials file that ships for a shipped model; the project's own copy comes first."""
    if model not in TRIALS:
        return None
    places = (base / TRIALS[model] for base in (rootdir, root()))
    return next((place for place in places if place.is_file()), None)
