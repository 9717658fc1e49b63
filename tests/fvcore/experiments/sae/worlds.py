"""A small data set that is right, held as values: a test changes what it is about, and writes it."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fvcore.experiments.config import resolve
from fvcore.experiments.sae.audit import audit
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.schemas import Validation

CONDITIONS = PathwaysConfig().conditions.expected
MIN_TRIALS = 3


def result(layer: int = 1, number: int = 0, **more: Any) -> dict[str, Any]:
    named = {"feature": f"L{layer}-{number}", "layer": layer, "feature_id": number}
    return named | {"is_causal": True, "cohen_d": 0.5} | more


def trials(feature: str, condition: str, n: int = MIN_TRIALS) -> list[dict[str, Any]]:
    return [
        {"feature": feature, "condition": condition, "trial": t, "response": f"1) Bet ${t}", "parsed": {"bet": t}}
        for t in range(n)
    ]


def records(names: list[str], n: int = MIN_TRIALS) -> list[dict[str, Any]]:
    return [one for name in names for condition in CONDITIONS for one in trials(name, condition, n)]


@dataclass
class Data:
    """files: name -> what it holds, text as it is; `c*` are checkpoints and `l*` logs"""

    root: Path
    files: dict[str, Any] = field(default_factory=dict)
    sets: dict[str, Any] = field(default_factory=dict)

    def settings(self, **more: Any) -> PathwaysConfig:
        given = {
            "paths.checkpoints": str(self.root / "c*"),
            "paths.response_logs": str(self.root / "l*"),
            "paths.out": self.root / "out",
            "audit.min_trials": MIN_TRIALS,
            "runtime.progress": "none",
        }
        return resolve(PathwaysConfig, given | self.sets | more)

    def write(self) -> None:
        for name, value in self.files.items():
            text = value if isinstance(value, str | bytes) else json.dumps(value)
            (self.root / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    def audit(self, policy: Any = "default", **more: Any) -> Validation:
        self.write()
        return audit(self.settings(**more), policy)


def right(root: Path, n: int = 10) -> Data:
    """Features of two layers, a file of the first layer's results and a later one of all, and two logs."""
    results = [result(1 + at % 2, at, cohen_d=at - 4.5) for at in range(n)]
    names = [one["feature"] for one in results]
    return Data(
        root,
        {
            "c1.json": {"timestamp": "1", "results": [one for one in results if one["layer"] == 1]},
            "c2.json": {"timestamp": "2", "results": results},
            "l1.json": records(names[: n // 2]),
            "l2.json": records(names[n // 2 :]),
        },
    )


def codes(found: Validation) -> dict[str, tuple[str, int]]:
    return {group.code: (group.severity, group.count) for group in found.issues}


def config_of(data: Data) -> Path:
    """The data written, and a config that names it."""
    data.write()
    path = data.root / "config.yaml"
    path.write_text(data.settings().text())
    return path
