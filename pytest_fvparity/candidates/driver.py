"""Runs a candidate in another interpreter. Started as a script; imports the standard library, torch and safetensors.

    python driver.py JOB.json

Calls the job's factory, says so in a line, and then answers one request a line until its input ends, each by the number
of its request. What the candidate's code prints goes to the error stream, also what a C library or a child of its own
writes: the answers leave by a descriptor that it does not know. Nor does it find the requests where it reads its input.
"""

from __future__ import annotations

import importlib
import inspect
import json
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

TENSOR = "$tensor"


def load(stem: str) -> dict[str, Any]:
    """An artifact: `<stem>.json` holds every leaf, `<stem>.safetensors` the tensors."""
    from safetensors.torch import load_file

    described: dict[str, Any] = json.loads(Path(f"{stem}.json").read_text())
    tensors = load_file(f"{stem}.safetensors") if Path(f"{stem}.safetensors").is_file() else {}
    return {leaf: tensors.get(leaf, value) for leaf, value in described.items()}


def save(artifact: dict[str, Any], stem: Path) -> None:
    """Arrays of other libraries are stored as tensors; the names of leaves keep their order."""
    import torch
    from safetensors.torch import save_file

    arrays = {leaf: torch.as_tensor(value) for leaf, value in artifact.items() if hasattr(value, "__array__")}
    tensors = {leaf: value.detach().cpu().contiguous().clone() for leaf, value in arrays.items()}
    described = {leaf: {TENSOR: [str(t.dtype).removeprefix("torch."), *t.shape]} for leaf, t in tensors.items()}
    stem.with_suffix(".json").write_text(json.dumps({**artifact, **described}))
    if tensors:
        save_file(tensors, stem.with_suffix(".safetensors"))


def answer(candidate: Any, request: dict[str, Any], stem: Path) -> dict[str, Any]:
    method = getattr(candidate, request["key"], None)
    if method is None:
        return {"not_provided": request["key"]}
    inputs = list(map(load, request["inputs"]))
    try:
        save(method(*inputs, *request["more"]), stem)
    except Exception:
        return {"error": traceback.format_exc()}
    changed = [
        leaf for given, file in zip(inputs, request["inputs"], strict=True) for leaf in edited(given, load(file))
    ]
    if changed:
        return {
            "error": f"while it was asked for {request['key']} it changed what it was handed, at {changed[0]!r}; copy it first"
        }
    return {"artifact": str(stem)}


def edited(given: dict[str, Any], file: dict[str, Any]) -> list[str]:
    """The leaves that are no longer what the file says: in its author's own chain the next method is given these."""
    import torch

    def same(one: Any, other: Any) -> bool:
        if isinstance(other, torch.Tensor):
            return isinstance(one, torch.Tensor) and one.dtype == other.dtype and one.detach().cpu().equal(other)
        return type(one) is type(other) and repr(one) == repr(other)

    return [leaf for leaf, value in file.items() if not same(given.get(leaf), value)]


def written(candidate: Any, names: Iterable[str]) -> dict[str, list[list[Any]]]:
    """Of each method the places [file, line] where it is written: its own, and its class's. None of the candidate's code runs."""
    static = {name: inspect.getattr_static(candidate, name, None) for name in names}
    found = {name: [place(method), place(type(candidate))] for name, method in static.items() if method is not None}
    return {name: [one for one in places if one] for name, places in found.items()}


def place(thing: Any) -> list[Any] | None:
    """None of what has no source: C, or an interpreter's prompt."""
    try:
        thing = inspect.unwrap(getattr(thing, "func", thing))
        return [inspect.getsourcefile(thing), inspect.getsourcelines(thing)[1] or 1]
    except (OSError, TypeError, ValueError):
        return None


def apart() -> tuple[TextIO, TextIO]:
    """The streams of requests and answers; input and output of everybody else are empty, and the error stream."""
    requests, answers = open(os.dup(0)), open(os.dup(1), "w")  # noqa: PTH123, SIM115 - descriptors, open to the end
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return requests, answers


def candidate_of(job: dict[str, Any]) -> Any:
    sys.path.insert(0, job["folder"])
    module, _, attribute = job["factory"].partition(":")
    factory = getattr(importlib.import_module(module), attribute)
    return factory(*loaded(job)) if job["loading"] else factory(job)


def loaded(job: dict[str, Any]) -> tuple[Any, Any, Any]:
    """What a factory gets that is not in another interpreter: model, trials and settings. This project is at hand then."""
    import torch

    from fvcore.model.model import load as load_model
    from fvcore.pipeline import Settings
    from fvcore.trials.sampled import read_trials

    torch.set_num_threads(job["threads"])
    return load_model(job["model_dir"], **job["loading"]), read_trials(Path(job["trials"])), Settings(**job["settings"])


def main(job_path: Path) -> None:
    requests, answers = apart()

    def say(number: int, value: dict[str, Any]) -> None:
        print(json.dumps({"number": number, **value}), file=answers, flush=True)

    job = json.loads(job_path.read_text())
    try:
        candidate = candidate_of(job)
    except Exception:
        say(0, {"error": traceback.format_exc()})
        return
    if candidate is None:
        say(0, {"error": f"the factory {job['factory']} returned None; expected the candidate. Is a `return` missing?"})
        return
    said = {"effects": getattr(candidate, "effects", None), "written": written(candidate, job["keys"])}
    say(0, {"ready": True, **said})
    for line in requests:
        request = json.loads(line)
        say(request["number"], answer(candidate, request, job_path.with_name(f"answer-{request['number']}")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
