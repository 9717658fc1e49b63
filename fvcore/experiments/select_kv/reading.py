"""A run read again from its folder: rows, settings and numbers, without a model."""

from pathlib import Path

from fvcore.experiments.folder import Folder
from fvcore.experiments.select_kv import files, gates, start
from fvcore.experiments.select_kv.schemas import OffRow, OnRow
from fvcore.experiments.select_kv.summary import Summary
from fvcore.formats import read_json, read_jsonl, validated


def measured(root: Path) -> gates.Measured:
    """What the gates judge of the run in a folder, from its files alone."""
    return summary_of(root).measured()


def summary_of(root: Path) -> Summary:
    """Raises FormatError where the folder holds no run that came to its OFF side."""
    folder = Folder(root)
    rotation = read_json(folder / files.RUNTIME_META)["rotation"]
    return Summary(start.read_settings(folder), on_rows_of(folder), off_rows_of(folder), rotation)


def on_rows_of(folder: Folder) -> list[OnRow]:
    path = folder / files.ON_ROWS
    return validated(list[OnRow], read_jsonl(path), path, "the ON rows of a run")


def off_rows_of(folder: Folder) -> list[OffRow]:
    path = folder / files.OFF_ROWS
    return validated(list[OffRow], read_jsonl(path), path, "the OFF rows of a run")
