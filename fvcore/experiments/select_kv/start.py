"""`config.yaml`: the settings of a run, resolved, and when, where and by which versions it began.

It is written once. A run that goes on later keeps the moment at which it began, so that its files keep their bytes.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fvcore.experiments.config import ConfigError
from fvcore.experiments.folder import Folder, names_a_folder
from fvcore.experiments.select_kv import files
from fvcore.experiments.select_kv.config import SelectKVConfig
from fvcore.formats import FormatError, read_yaml, sentence, write_text
from fvcore.provenance import git_state, now, versions

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2

RUN = "run"
"""The key of `config.yaml` that is no setting."""


def new_run_id() -> str:
    """Moment and commit, `20260102_030405_1a2b3c4`; `nogit` outside of a checkout."""
    digits = "".join(character for character in now() if character.isdigit())
    return f"{digits[:8]}_{digits[8:14]}_{git_state().sha or 'nogit'}"


def require_run_id(run_id: str) -> None:
    if not run_id or not names_a_folder(run_id):
        raise ConfigError(f"--run-id {run_id!r}: expected the name of a folder, without slashes and a leading dot")


def write_config(folder: Folder, run_id: str, settings: Phase2, device: str) -> None:
    """Write the run's config, unless it has one."""
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
        "device_name": torch.cuda.get_device_name() if device.startswith("cuda") else platform.processor() or "cpu",
        "metrics_schema_version": settings.metrics.schema_version,
        "argv": list(sys.argv),
    }
