"""A run read again from its folder, without a model: its config, when and where it began, its rows, numbers and times."""

import json
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fvcore.experiments.folder import Folder
from fvcore.experiments.select_kv import files, gates
from fvcore.experiments.select_kv.config import Phase2, SelectKVConfig
from fvcore.experiments.select_kv.schemas import OffRow, OnRow
from fvcore.experiments.select_kv.summary import Summary
from fvcore.formats import FormatError, read_json, read_jsonl, read_yaml, sentence, validated, write_text
from fvcore.provenance import git_state, now, versions

RUN = "run"
"""The key of `config.yaml` that is no setting."""


def measured(root: Path) -> gates.Measured:
    """What the gates judge of the run in a folder, from its files alone."""
    return summary_of(Folder(root)).measured()


def summary_of(folder: Folder) -> Summary:
    """Raises FormatError where the folder holds no run that came to its OFF side."""
    rotation = read_json(folder / files.RUNTIME_META)["rotation"]
    off = read_jsonl(folder / files.OFF_ROWS)
    rows = validated(list[OffRow], off, folder / files.OFF_ROWS, "the OFF rows of a run")
    return Summary(read_settings(folder), on_rows_of(folder), rows, rotation)


def on_rows_of(folder: Folder) -> list[OnRow]:
    path = folder / files.ON_ROWS
    return validated(list[OnRow], read_jsonl(path), path, "the ON rows of a run")


def times(folder: Folder) -> dict[str, float]:
    """Stage -> seconds."""
    path = folder / files.TIMES
    return dict(read_json(path)) if path.is_file() else {}


def write_config(folder: Folder, run_id: str, settings: Phase2, device: str) -> None:
    """Write the settings, and when, where and by which versions the run began, unless it did before.

    A run that goes on later keeps the moment at which it began, so that its files keep their bytes.
    """
    if (folder / files.CONFIG).is_file():
        return
    import yaml

    about = yaml.safe_dump({RUN: _began(run_id, settings, device)}, sort_keys=False, allow_unicode=True, width=1000)
    write_text(folder / files.CONFIG, f"{settings.text()}\n# How the run began; no setting.\n{about}")


def read_settings(folder: Folder) -> Phase2:
    """Raises FormatError where the folder holds no run, or its config is none of ours."""
    tree = {name: value for name, value in _read(folder).items() if name != RUN}
    try:
        # As JSON a list may be a tuple, and a text a path.
        return SelectKVConfig.model_validate_json(json.dumps(tree)).resolve()
    except ValidationError as error:
        raise FormatError(f"{folder / files.CONFIG}: not the config of a Select-KV run ({sentence(error)})") from None


def began(folder: Folder) -> Mapping[str, Any]:
    """What the config says beside the settings: run_id, start_time, ..."""
    return dict(_read(folder)[RUN])


def _read(folder: Folder) -> dict[str, Any]:
    tree = read_yaml(folder / files.CONFIG)
    return dict(tree) if isinstance(tree, dict) else {}


def _began(run_id: str, settings: Phase2, device: str) -> dict[str, Any]:
    import torch

    found, git = versions(), git_state()
    return {
        "run_id": run_id,
        "start_time": now(),
        "phase": 2,
        "git_sha": git.sha or None,
        "git_dirty": git.dirty,
        "host": platform.node(),
        "python_version": found["python"],
        "torch_version": found["torch"],
        "transformers_version": found["transformers"],
        "cuda_version": torch.version.cuda,
        "device_name": torch.cuda.get_device_name(device)
        if device.startswith("cuda")
        else platform.processor() or "cpu",
        "metrics_schema_version": settings.metrics.schema_version,
        "argv": list(sys.argv),
    }
