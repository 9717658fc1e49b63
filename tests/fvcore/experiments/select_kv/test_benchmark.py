"""The benchmark writes the episodes that other libraries are asked on, and counts passes. Nothing is asserted of time."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[4] / "benchmarks"


@pytest.mark.slow
def test_episodes_are_the_shipped_runs_own_demos_as_token_ids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import select_kv

    from fvcore.experiments.select_kv.data import on_samples
    from fvcore.model.model import load_tokenizer

    select_kv.main(["--episodes", str(tmp_path / "episodes.json")])

    given = json.loads((tmp_path / "episodes.json").read_text())
    expected = on_samples(select_kv.settings(**{"eval.on_samples": select_kv.N_ON}), load_tokenizer("tiny-llama"))
    assert [tuple(one["demo_ids"]) for one in given["on"]] == [one.demo.ids for one in expected]
    assert given["budgets"] == [2, 4, 16, 40]
    assert len(given["sink"]) == 1
    sys.modules.pop("select_kv")
