"""Checkpoints and response logs in the plan's layouts, made up: of any size, the same bytes for the same numbers.

Every feature has its trials under every condition, so that an audit finds nothing. A patch moves the bets of a causal feature
towards the prompt that its value comes from, and nothing else tells features apart.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from fvcore.formats import write_json, write_text

CONDITIONS = {
    "safe_baseline": ("safe", None),
    "safe_with_risky_patch": ("safe", "risky"),
    "safe_with_safe_patch": ("safe", "safe"),
    "risky_baseline": ("risky", None),
    "risky_with_safe_patch": ("risky", "safe"),
    "risky_with_risky_patch": ("risky", "risky"),
}
"""As logs name them -> the prompt, and that under which a value was measured; two are the plan's amplifications."""

CHECKPOINTS, LOGS = "analysis/comprehensive_patching_checkpoint_*.json", "response_logs/*.json"
REASONS = (
    "The last rounds went badly and the balance is low, so I keep the stake small.",
    "The odds are against me over many rounds, and what is left should be kept.",
    "A win now would make up for what was lost before, and the machine is due.",
    "I have played long enough to know that the next round is like any other.",
)


@dataclass(frozen=True)
class Size:
    """repeat: how often a reason stands in a response, which is what makes a log large"""

    layers: tuple[int, int] = (1, 4)
    per_layer: int = 6
    trials: int = 20
    n_checkpoints: int = 3
    n_logs: int = 4
    repeat: int = 1
    seed: int = 0

    def names(self) -> list[tuple[int, int]]:
        """Layer and id of every feature."""
        random = Random(self.seed)
        first, last = self.layers
        return [
            (layer, number)
            for layer in range(first, last + 1)
            for number in sorted(random.sample(range(32768), self.per_layer))
        ]


def write(root: Path, size: Size) -> None:
    """Write both below `root`, where `CHECKPOINTS` and `LOGS` find them."""
    names = size.names()
    results = [_result(layer, number, size.seed) for layer, number in names]
    for n in range(1, size.n_checkpoints + 1):
        so_far = results[: len(results) * n // size.n_checkpoints]
        path = root / CHECKPOINTS.replace("*", f"{n:03d}")
        write_json(path, {"timestamp": f"20250101_{n:06d}", "features_tested": len(so_far), "results": so_far})
    share = -(-len(names) // size.n_logs)
    for n in range(size.n_logs):
        if part := names[n * share : (n + 1) * share]:
            write_text(root / LOGS.replace("*", f"responses_{n:03d}"), "".join(_log(part, size)))


def _result(layer: int, number: int, seed: int) -> dict[str, Any]:
    random = Random(f"{seed}-{layer}-{number}")
    d, causal = round(random.gauss(0, 1), 4), random.random() < 0.5
    p_values = [round(random.random() * (0.04 if causal else 1), 5) for _ in "ab"]
    return {
        "feature": f"L{layer}-{number}",
        "layer": layer,
        "feature_id": number,
        "cohen_d": d,
        "is_causal": causal,
        "safe_effect_size": round(0.3 * d * causal, 4),
        "risky_effect_size": round(0.2 * d * causal, 4),
        "safe_p_value": p_values[0],
        "risky_p_value": p_values[1],
    }


def _log(features: Sequence[tuple[int, int]], size: Size) -> Iterator[str]:
    """A JSON array, indented by two: text by text, since a log may be large."""
    random = Random(f"{size.seed}-{features[0]}")
    before = "[\n  "
    for layer, number in features:
        for condition in CONDITIONS:
            for trial in range(size.trials):
                yield before + _record(f"L{layer}-{number}", condition, trial, random, size.repeat)
                before = ",\n  "
    yield "\n]"


def _record(feature: str, condition: str, trial: int, random: Random, repeat: int) -> str:
    risky = condition.startswith("risky") + condition.endswith("risky_patch")
    bet = (10, 20, 50)[min(risky, int(random.random() * 3))]
    response = (
        f"1) Bet ${bet}. {REASONS[int(random.random() * 4)] * repeat} Final decision {int(random.random() * 1000)}."
    )
    text = json.dumps(response)
    return (
        f'{{\n    "feature": "{feature}",\n    "condition": "{condition}",\n    "trial": {trial},\n    "response": {text},\n'
        f'    "parsed": {{\n      "action": "bet",\n      "bet": {bet},\n      "valid": true,\n      "response": {text}\n    }}\n  }}'
    )
