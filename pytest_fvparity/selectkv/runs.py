"""What a Select-KV suite may judge: a config that is run for it, or a run that is there. Imports nothing heavy."""

from pathlib import Path

import pytest

from fvcore import shipped
from fvcore.formats import FormatError

REPORT = "report_phase2.json"
DEFAULT = "tiny.yaml"


def subject_file(given: Path | None, rootdir: Path) -> Path:
    """The file that is a test file: a config as it was given, a run folder's report, else the shipped config.

    Raises FormatError for what is neither.
    """
    if given is None:
        return _shipped(rootdir)
    if given.is_dir():
        if not (given / REPORT).is_file():
            raise FormatError(f"{given}: no Select-KV run (no {REPORT}); `fvcore select-kv` makes one")
        return given / REPORT
    if not given.is_file():
        raise FormatError(
            f"{given}: no such file; expected a config (.yaml) or the folder of a run of `fvcore select-kv`"
        )
    return given


def _shipped(rootdir: Path) -> Path:
    from fvcore.experiments import select_kv

    path = Path(select_kv.__file__).parent / "configs" / DEFAULT
    if not path.is_relative_to(rootdir) and not shipped.is_packaged():
        # Collecting there would read that checkout's root conftest.py, which pytest allows in its own root only.
        raise pytest.UsageError(
            f"the project is installed from {shipped.root()} (editable): run `pytest -m selectkv` there, or copy {path} "
            "into this project and give it as --fv-select-kv"
        )
    return path


def is_finished(file: Path) -> bool:
    """Whether the file stands for a run that is there, and not for one to be made."""
    return file.name == REPORT


def title_of(file: Path) -> str:
    return file.parent.name if is_finished(file) else file.stem
