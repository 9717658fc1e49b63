"""What goldens and reports of a trials file are filed under, told from the file alone."""

from functools import cache, partial
from glob import escape
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


@cache
def made_for(path: Path) -> str:
    """The model whose tokenizer a trials file was made with, as files are named by it; nothing where it cannot be told."""
    from fvcore.formats import FormatError
    from fvcore.trials.fixed import model_tag
    from fvcore.trials.sampled import read_trials

    try:
        return model_tag(read_trials(path).meta.model_name_for_tokenizer)
    except FormatError:
        return ""


def particular(path: Path, profile: str, model: str | None) -> str:
    """What a report lies under beside its trials: a reference profile that is not the usual one, and a model that was asked
    for by another name than the trials were made with."""
    from fvcore.trials.fixed import model_tag

    other = model_tag(model) if model else ""
    parts = ["" if profile == "src" else profile, "" if other == made_for(path) else other]
    return "-".join(filter(None, parts))


@cache
def under_of(report_dir: Path, path: Path, profile: str, model: str | None) -> str:
    """`particular`, and beside the report of another directory of this name a word that no other directory has.

    report_dir: where reports are written; what lies there when it is first asked decides
    """
    from fvcore.trials.fixed import model_tag

    usual, word = particular(path, profile, model), names.word_of_directory(model or "")
    own = "-".join(filter(None, (usual or model_tag(model or ""), word)))
    dataset, id = place_of(path)
    found = partial(_found, report_dir, escape(dataset) if dataset else "*", escape(id))
    others = {_directory_of(report) for report in found(usual)} - {"", word}
    return own if word and (others or found(own)) else usual


def _found(report_dir: Path, dataset: str, id: str, under: str) -> list[Path]:
    from pytest_fvparity.report.render import REPORT

    return list(report_dir.glob("/".join(filter(None, (dataset, id, under, f"{REPORT}.json")))))


def _directory_of(report: Path) -> str:
    from fvcore.formats import FormatError, read_json

    try:
        value = read_json(report)
    except FormatError:
        return ""
    return str(value.get("model_directory", "")) if isinstance(value, dict) else ""


def title_of(path: Path) -> str:
    """A trials file in a word: of a run's frozen trials the folder of the run, by its last two parts."""
    if path.name != SAMPLED:
        return path.stem
    folder = path.parent.parent if path.parent.name == "artifacts" else path.parent
    return "/".join(folder.parts[-2:])
