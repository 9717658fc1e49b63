"""A run in a process that is killed at a random point: after some files, at some moment between two of them or in one."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from random import Random

import transformers.models.llama.modeling_llama  # noqa: F401  every process would import it anew
from transformers import AutoModelForCausalLM, AutoTokenizer  # noqa: F401

from fvcore.experiments.relation.config import RelationSettings
from fvcore.experiments.relation.run import run
from fvcore.experiments.workers import Local
from fvcore.model import model as models
from tests.fvcore.experiments.relation.worlds import SMALL, small

SLEEP = 0.03  # seconds at most between the last file and the end


def whole_run(folder: Path, settings: RelationSettings = SMALL) -> None:
    os.environ["SOURCE_DATE_EPOCH"] = "0"
    os.chdir(folder)
    run(small(Path()), Path("out"), settings, Local(models.load("tiny-llama")))


def killed_run(folder: Path, seed: int, n_files: int) -> None:
    """Never comes back, unless the run ends before `n_files` files are written."""
    rng, fsync, written = Random(seed), os.fsync, 0
    pause = rng.uniform(0, SLEEP)

    def counting(descriptor: int) -> None:
        nonlocal written
        written += 1
        if written == n_files and seed % 3 == 0:
            os.kill(os.getpid(), signal.SIGKILL)  # the file is not yet under its name
        if written == n_files:
            threading.Thread(target=_kill_after, args=(pause,), daemon=True).start()
        fsync(descriptor)

    os.fsync = counting
    whole_run(folder)


def _kill_after(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)
