"""A run in its folder: the ON side, the OFF side, the verdict and its pages, each a stage that is done once.

A run that was killed goes on where it stood, to the same bytes; a folder of other settings, or of something else, is
refused. What stops a run before its verdict leaves a report that says so, and no gate a number.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.experiments import exits
from fvcore.experiments.errors import FolderInUse, OtherSettings, StepError
from fvcore.experiments.folder import Folder, locked
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.record import Record, Stage
from fvcore.experiments.select_kv import files, gates, records, verdict
from fvcore.experiments.select_kv.config import SelectKVConfig
from fvcore.experiments.select_kv.errors import SelectKVRuntimeError
from fvcore.experiments.select_kv.schemas import OffRow, OnRow
from fvcore.experiments.select_kv.summary import Summary
from fvcore.fast.chunks import Advance
from fvcore.formats import (
    FormatError, read_json, read_jsonl, read_yaml, validated, write_json, write_text,
)  # fmt: skip
from fvcore.model.spec import ModelError
from fvcore.provenance import now, versions

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.bench import Bench
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.data import OffSample, OnSample
    from fvcore.experiments.select_kv.runtime import Runtime

RUN = "run"
"""The key of `config.yaml` that is no setting: when, where and by which versions the run began."""
