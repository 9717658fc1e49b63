"""Candidates of any make: from a factory here, from another interpreter, or from a folder of artifacts.

A candidate need not offer all six keys. A key of which it provides nothing is red; leaves that lack make a run PARTIAL.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fvcore import artifacts
from fvcore.artifacts import Artifact
from fvcore.experiments import plan_files
from fvcore.formats import FormatError, read_json
from fvcore.gates import NotProvided, error_line
from pytest_fvparity.candidates.conversation import CandidateError, Conversation
from pytest_fvparity.parity.implementation import CHECK_KEYS, NO_CANDIDATE, Answers, ByKey, Implementation

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings
    from fvcore.trials.fixed import FixedTrials

DRIVER = Path(__file__).with_name("driver.py")


def from_factory(name: str, folder: Path, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> Implementation:
    """Call `package.module:factory` with model, trials and settings. `folder` is where pytest was started."""
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise CandidateError(f"--fv-candidate: expected package.module:factory, found {name!r}")
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))  # where a person writes the file and starts pytest
    try:
        factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise CandidateError(f"--fv-candidate {name}: {error} (looked for in {folder} and the environment)") from error
    return required(factory(lm, trials, settings), f"--fv-candidate {name}")


def required(given: Any, by: str) -> Implementation:
    """A candidate; raises CandidateError where who was asked for one answered None."""
    if given is None:
        raise CandidateError(
            f"{by} returned None; expected the candidate, an object with methods named after the check keys. Is a `return` "
            "missing?"
        )
    return cast("Implementation", given)


@dataclass(frozen=True)
class FromFolder(Answers):
    """Artifacts already computed: `<key>.json` and `<key>.safetensors`, or the file names of the milestone plans.

    The plans' files hold a part of a key's leaves; those are compared, and the rest is said not to be provided.
    """

    path: Path

    def __post_init__(self) -> None:
        if not self.path.is_dir():
            raise CandidateError(f"--fv-candidate-dir: no such folder: {self.path}")

    def stored(self, key: str) -> Artifact:
        if leaves := _plan_leaves(self.path, key):
            return leaves
        if (self.path / f"{key}.json").is_file():
            return artifacts.load(self.path / key)
        raise NotProvided(f"{self.path} holds no {key}.json, and none of the plans' files for this key")

    def notes(self, key: str) -> list[str]:
        """Of two files for one key, which was read."""
        plan, own = PLAN_FILES.get(key, ""), f"{key}.json"
        both = plan and all((self.path / name).is_file() for name in (plan, own))
        return [f"two files for one key: {plan} was read, and {own} beside it was not"] if both else []

    def block_outputs(self, prompts: Artifact, layer: int) -> Artifact:
        """What the modules of a block gave, if the folder holds it: `block_outputs_<layer>.json`."""
        return self.artifact(f"block_outputs_{layer}")


PLAN_FILES = {"mean_activations": plan_files.MEANS, "fv_vector": plan_files.VECTOR}
"""The plans' files of keys whose own file has another name."""


def _plan_leaves(folder: Path, key: str) -> Artifact:
    """The leaves of a check key that the plans' files in `folder` hold; none where there is no such file."""
    means, heads, vector = (folder / name for name in (plan_files.MEANS, plan_files.TOP_HEADS, plan_files.VECTOR))
    if key == "mean_activations" and means.is_file():
        return {key: plan_files.read_means(means)}
    if key == "fv_vector" and vector.is_file():
        return {"function_vector": plan_files.read_vector(vector)}
    if key == "top_heads" and heads.is_file():
        value = read_json(heads)
        ours = isinstance(value, dict) and "meta" not in value  # of the same name, and its leaves are not rows
        return {} if ours else {"heads": plan_files.heads_in(value, heads)}
    return {}


class Elsewhere(ByKey):
    """A candidate that runs in another interpreter, with libraries this one lacks.

    One process answers one request a line (`conversation`): the name of an artifact (JSON and safetensors) out. It needs torch
    and safetensors, and neither pytest nor this project. The factory gets one mapping, the job: `model_dir`, `trials`
    (the file's path), `device`, `dtype` and `settings`; its methods take artifacts as plain dictionaries. With `loading` it
    is isolated: this interpreter once more, where the factory gets what it gets here, the model loaded in that way.
    """

    def __init__(
        self,
        python: str,
        name: str,
        folder: Path,
        lm: LanguageModel,
        trials: FixedTrials,
        settings: Settings,
        timeout_s: float,
        loading: Mapping[str, Any] | None = None,
    ) -> None:
        import torch

        if lm.source is None or trials.path is None:
            raise CandidateError(
                f"{'--fv-isolate' if loading else '--fv-candidate-python'}: the other process loads model and trials from "
                "disk; give a directory as --fv-model and a file as --fv-trials"
            )
        job = {
            "model_dir": str(lm.source),
            "trials": str(trials.path),
            "device": str(lm.device),
            "dtype": lm.dtype,
            "settings": asdict(settings),
            "factory": name,
            "folder": str(folder),
            "loading": loading,
            "threads": torch.get_num_threads(),
            "keys": list(CHECK_KEYS),
        }
        self._scratch = tempfile.TemporaryDirectory(prefix="fvparity-candidate-")
        self.folder = Path(self._scratch.name)
        (self.folder / "job.json").write_text(json.dumps(job))
        self.name, self.n_files = name, 0
        command = [python, str(DRIVER), str(self.folder / "job.json")]
        try:
            self.conversation = Conversation(name, command, folder, timeout_s)
        except OSError as error:
            raise CandidateError(f"--fv-candidate-python: cannot start {python!r} ({error.strerror})") from error
        told = self._told(self.conversation.answer())
        self.effects = told.get("effects")  # what its effects are of, if it says so
        said = told.get("written")  # the places of its methods
        self.written: dict[str, Any] = said if isinstance(said, dict) else {}

    def _told(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "not_provided" in answer:
            raise NotProvided(f"the candidate {self.name} has no method {answer['not_provided']!r}")
        if "error" in answer:
            raise CandidateError(f"candidate {self.name}: {error_line(answer['error'])}\n{answer['error']}")
        return answer

    def artifact(self, key: str, *inputs: Artifact, more: Sequence[int] = ()) -> Artifact:
        stems = []
        for artifact in inputs:
            self.n_files += 1
            stems.append(self.folder / f"input-{self.n_files}")
            artifacts.save(artifact, stems[-1])
        request = {"key": key, "inputs": [str(stem) for stem in stems], "more": list(more)}
        answer = self._told(self.conversation.ask(request))
        try:
            return artifacts.load(Path(answer["artifact"]))
        except FormatError as error:
            raise CandidateError(f"candidate {self.name}: {error}") from error

    def block_outputs(self, prompts: Artifact, layer: int) -> Artifact:
        return self.artifact("block_outputs", prompts, more=(layer,))

    def close(self) -> None:
        """End the process and remove what was exchanged."""
        self.conversation.close()
        self._scratch.cleanup()


def name_of(candidate: Implementation, shown: Callable[[Path], str]) -> str:
    """What a report calls a candidate: what an option named, else its class, or that nobody gave one."""
    from pytest_fvparity.candidates.itself import NoCandidate

    if isinstance(candidate, FromFolder):
        return shown(candidate.path)
    if isinstance(candidate, Elsewhere):
        return candidate.name
    kind = type(candidate)
    return NO_CANDIDATE if isinstance(candidate, NoCandidate) else f"{kind.__module__}.{kind.__qualname__}"
