"""What goldens and reports of a trials file are filed under, told from the file alone."""

from pathlib import Path

from fvcore import names

SAMPLED = "sampled_trials.json"
"""The name that every run gives its frozen trials, so that it says nothing."""


def place_of(path: Path) -> tuple[str | None, str]:
    """(dataset, fixed-trials id); the dataset is None where only reading the trials would tell it.

    A file that cannot be read keeps its own name: the stages say what is wrong with it.
    """
    if path.name != SAMPLED:
        return None, names.made(path.stem)
    from fvcore.formats import FormatError
    from fvcore.trials.sampled import read_trials

    try:
        fixed = read_trials(path)
    except FormatError:
        return None, names.made(path.stem)
    return fixed.dataset, fixed.id


def title_of(path: Path) -> str:
    """A trials file in a word: of a run's frozen trials the folder of the run, by its last two parts."""
    if path.name != SAMPLED:
        return path.stem
    folder = path.parent.parent if path.parent.name == "artifacts" else path.parent
    return "/".join(folder.parts[-2:])
