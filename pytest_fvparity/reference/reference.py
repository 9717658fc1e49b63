"""The public reference as an implementation: drives a checkout of `ericwtodd/function_vectors` from outside.

This file and the script it starts (`reference_driver.py`) are the only ones that know the reference. Here: which of
its name branches fits a model family, how its process is started, and where it came from.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from fvcore.artifacts import Artifact
from fvcore.gates import error_line
from fvcore.model.model import DTYPES, LanguageModel
from fvcore.pipeline import Settings, profile_of
from fvcore.profile import Profile
from fvcore.prompts import PromptTemplate, require_bos_agreement
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity.children import following
from pytest_fvparity.parity.implementation import Answers
from pytest_fvparity.parity.noise import Noise, measured, variations
from pytest_fvparity.reference.checkout import BRANCHES as BRANCHES
from pytest_fvparity.reference.checkout import GET_ONE as GET_ONE
from pytest_fvparity.reference.checkout import REPOSITORY as REPOSITORY
from pytest_fvparity.reference.checkout import RecordingError as RecordingError
from pytest_fvparity.reference.checkout import commit_of as commit_of
from pytest_fvparity.reference.checkout import require_checkout as require_checkout

OUT = "recorded.pt"
DRIVER = Path(__file__).with_name("driver.py")


@dataclass(frozen=True)
class Recording(Answers):
    """What one run of the reference said: an Implementation that answers from memory."""

    artifacts: Mapping[str, Artifact]
    provenance: Mapping[str, Any]
    profile: Profile
    noise: Noise = field(default_factory=Noise)


def run(
    checkout: Path | None,
    lm: LanguageModel,
    trials: FixedTrials,
    settings: Settings,
    python: str | None = None,
    with_noise: bool = True,
    words_only: bool = False,
    advance: Callable[[float], None] = lambda share: None,
) -> Recording:
    """Run the reference in a process of its own, on the files `lm` was loaded from: once to record what it says, and
    `with_noise` once under each legal variation, to measure how far it is from itself; another process runs it with other
    instructions of the processor.

    `advance` is told from time to time which share of all is done. `words_only` stops behind the slot map: prompts and slots are compared exactly, need no pass of the model and no noise.
    """
    with_noise = with_noise and not words_only
    root = require_checkout(checkout)
    settings.require_fit(lm)
    require_bos_agreement(lm.tokenizer, trials.meta)
    if lm.source is None:
        raise RecordingError(
            f"the reference loads its model from a directory, and {lm.name!r} has none; save it with save_pretrained "
            "(model and tokenizer) and pass the directory as --fv-model"
        )
    every = variations(lm) if with_noise else []
    job = _job(root, lm, trials, settings) | {"words_only": words_only}
    with tempfile.TemporaryDirectory() as scratch:
        driver = partial(_answer, python or sys.executable, Path(scratch))
        runs, within = 1 + len(every), [change for change in every if not change["environment"]]
        recorded = driver(job | {"variations": within}, advance=lambda n: advance(n / runs))
        varied = recorded["varied"]
        for done, change in enumerate((change for change in every if change["environment"]), 1 + len(within)):
            again = job | {"variations": [change], "recorded": str(Path(scratch) / OUT)}
            varied |= driver(again, change["environment"], partial(_behind, advance, done, runs))["varied"]
    provenance = recorded["provenance"] | {"repository": REPOSITORY, "commit": commit_of(root)}
    if provenance["weights_sha"] != lm.weights_sha:
        raise RecordingError(f"the reference loaded other weights from {lm.source} than this process did")
    noise = measured(recorded["artifacts"], varied) if with_noise else Noise()
    return Recording(recorded["artifacts"], provenance, _profile(lm, trials, settings, provenance), noise)


def _behind(advance: Callable[[float], None], done: int, runs: int, n: float) -> None:
    advance((done + n) / runs)


def _job(root: Path, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> dict[str, Any]:
    if lm.spec.name not in BRANCHES:
        raise RecordingError(f"the reference has no branch for {lm.spec.name!r}; known: {', '.join(BRANCHES)}")
    paths = [lm.spec.block_path(layer) for layer in range(lm.n_layers)]
    if unread := [path for layer, path in enumerate(paths) if path.split(".")[2:3] != [str(layer)]]:
        raise RecordingError(
            f"the reference reads a layer's number from the third part of a module's name, and {unread[0]!r} has "
            "another part there; only models whose blocks lie at <a>.<b>.<layer> can be recorded"
        )
    template = PromptTemplate.of(trials.meta, lm.tokenizer)
    chosen = ("n_top_heads", "token_class_idx", "edit_layer", "alpha", "reference_profile")
    return {
        "checkout": str(root),
        "model_dir": str(lm.source),
        "dtype": str(DTYPES[lm.dtype]).removeprefix("torch."),
        "device": str(lm.device),
        "attn_implementation": lm.attn_implementation,
        "branch": BRANCHES[lm.spec.name],
        "attn_hook_names": [lm.spec.out_proj_path(layer) for layer in range(lm.n_layers)],
        "layer_hook_names": paths,
        "prefixes": template.prefixes.model_dump(),
        "separators": template.separators.model_dump(),
        **trials.meta.model_dump(include={"seed", "n_shots"}),
        **{name: getattr(settings, name) for name in chosen},
        "trials": [
            {
                "key": trial.key,
                "clean": [demo.model_dump() for demo in trial.demos],
                "corrupted": [demo.model_dump() for demo in trial.corrupted_demos],
                "query": trial.query.model_dump(),
                "target_id": trial.target_id,
            }
            for trial in trials.trials
        ],
    }


def _answer(
    python: str,
    scratch: Path,
    job: dict[str, Any],
    environment: Mapping[str, str] | None = None,
    advance: Callable[[float], None] = lambda n: None,
) -> Any:
    """What the driver says of a job. Of a job that varies a recording, that lies where the recording was written."""
    import torch

    out, path = scratch / (f"varied_{OUT}" if "recorded" in job else OUT), scratch / "job.json"
    path.write_text(json.dumps(job | {"out": str(out)}))
    _start(python, path, environment or {}, advance)
    return torch.load(out, weights_only=True)


def _start(python: str, job: Path, more: Mapping[str, str], advance: Callable[[float], None]) -> None:
    # Its own module search path alone: the reference's top-level package is called `utils`.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    environment["OMP_WAIT_POLICY"] = "PASSIVE"  # two threads that spin on one core take minutes for a second's work
    environment |= more
    words, errors = following([python, str(DRIVER), str(job)]), job.with_name("errors.txt")
    how: dict[str, Any] = {"env": environment, "cwd": job.parent, "stdout": subprocess.PIPE, "text": True}
    try:
        with errors.open("w") as told, subprocess.Popen(words, stderr=told, errors="replace", **how) as process:
            for line in process.stdout or ():
                if found := re.fullmatch(r"progress (\d+\.\d+)\s*", line):  # whatever else the reference prints
                    advance(float(found[1]))
    except OSError as error:
        raise RecordingError(f"cannot start {python!r} ({error.strerror}); see --fv-src-python") from error
    if process.returncode == 0:
        return
    said = errors.read_text(errors="replace")
    last = error_line(said)
    if "No module named" in last:
        raise RecordingError(
            f"the reference cannot be imported: {last}. Install what it needs with `pip install "
            "'pytest-fvparity[reference]'`, or name an interpreter that has it with --fv-src-python"
        )
    raise RecordingError(f"the reference was not recorded: {last}\n{said.strip()[-3000:]}")


def _profile(lm: LanguageModel, trials: FixedTrials, settings: Settings, provenance: Mapping[str, Any]) -> Profile:
    """Identity as measured here, conditions as the reference's process had them."""
    here = profile_of(lm, trials, settings)
    versions = {name: provenance["versions"][name] for name in here.conditions.versions}
    # Engine `exact` is the reference's own arithmetic.
    ran = {"attn_implementation": provenance["attn_implementation"], "engine": "exact", "threads": 1}
    return here.model_copy(update={"conditions": here.conditions.model_copy(update={**ran, "versions": versions})})
