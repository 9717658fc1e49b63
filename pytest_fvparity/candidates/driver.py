"""Runs a candidate in another interpreter. Started as a script; imports the standard library, torch and safetensors.

    python driver.py JOB.json

Calls the job's factory, says so in a line, and then answers one request a line until its input ends. Whatever the
candidate prints goes to the error stream: the output stream carries the answers alone.
"""

from __future__ import annotations

import importlib
import json
import sys
import traceback
from pathlib import Path
from typing import Any

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
    try:
        save(method(*map(load, request["inputs"]), *request["more"]), stem)
    except Exception:
        return {"error": traceback.format_exc()}
    return {"artifact": str(stem)}


def main(job_path: Path) -> None:
    answers, sys.stdout = sys.stdout, sys.stderr
    job = json.loads(job_path.read_text())

    def say(value: dict[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    sys.path.insert(0, job["folder"])
    module, _, attribute = job["factory"].partition(":")
    try:
        candidate = getattr(importlib.import_module(module), attribute)(job)
    except Exception:
        say({"error": traceback.format_exc()})
        return
    say({"ready": True})
    for number, line in enumerate(sys.stdin):
        say(answer(candidate, json.loads(line), job_path.with_name(f"answer-{number}")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
