"""What a run is said to cost, against what is measured: operations and memory of a model that is there."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fvcore.cli import app
from fvcore.experiments.config import resolve
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.features import FEATURES
from tests.fvcore.experiments.sae.worlds import config_of, right
from tests.late import RUNNING

if RUNNING:
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    from fvcore.experiments.sae.plan import Plan
    from fvcore.model.model import LanguageModel, load
    from fvcore.model.residual import residual_stream

    class Living(TorchDispatchMode):
        """Bytes of all that computations make and that is still there, at most."""

        def __init__(self) -> None:
            super().__init__()
            self.there: dict[int, int] = {}
            self.most = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            made = func(*args, **(kwargs or {}))
            for one in tree_leaves(made):
                if isinstance(one, torch.Tensor) and one.untyped_storage()._cdata not in self.there:
                    storage = one.untyped_storage()
                    self.there[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.there.pop, storage._cdata, None)
            self.most = max(self.most, sum(self.there.values()))
            return made


TINY = {"model.name": "tiny-llama", "model.dtype": "float32", "features.layers": "0-5", "features.top_k_per_layer": 7}


def planned(**more: object) -> Plan:
    return Plan(resolve(PathwaysConfig, TINY | more))


def test_the_plans_run_fits_into_24_gb_and_its_parameters_are_counted() -> None:
    plan = Plan(resolve(PathwaysConfig, {"paths.out": Path("nowhere")}))

    assert plan.parameters == 8_030_261_248
    assert sum(plan.per_layer.values()) == 31 * 50
    assert plan.pathways == 30 * 50 * 25
    assert 20e9 < plan.peak < 24e9


def kept_by(lm: LanguageModel, ids: torch.Tensor) -> int:
    """Bytes that a real pass keeps for its backward pass, without the weights."""
    seen: dict[int, torch.Tensor] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        seen.setdefault(value.untyped_storage().data_ptr(), value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        residual_stream(lm, ids, leaf=0)
    held = {one.untyped_storage().data_ptr() for one in lm.hf.parameters()}
    return sum(value.untyped_storage().nbytes() for at, value in seen.items() if at not in held)


def test_what_a_pass_costs_and_what_its_backward_pass_keeps_is_what_a_real_one_does() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    # Attention step by step, as it is on a device without memory; one in a single step keeps less.
    plan, lm, fused = planned(), load("tiny-llama", attn="eager"), load("tiny-llama", attn="sdpa")
    ids = lm.ids([1] * plan.tokens)
    with FlopCounterMode(display=False) as counter:
        residual_stream(lm, ids)
    assert plan.block.operations * plan.tokens * lm.n_layers == counter.get_total_flops()

    told = plan.block.kept * plan.tokens * (lm.n_layers - 1)
    assert kept_by(lm, ids) == pytest.approx(told, rel=0.02)
    assert 0.5 * told < kept_by(fused, ids) < told


def test_gradients_of_several_targets_take_no_more_than_is_planned() -> None:
    plan, lm = planned(), load("tiny-llama")
    last = lm.n_layers - 1
    with Living() as living:
        stream = residual_stream(lm, lm.ids([1] * plan.tokens), last=last, leaf=0)
        targets = stream[last][0, -1, :5]
        streams = [stream[layer] for layer in range(last)]
        torch.autograd.grad(targets, streams, grad_outputs=torch.eye(5), is_grads_batched=True)
    _, kept, gradients, *_ = plan.memory.values()

    assert living.most < kept + gradients < 1.5 * living.most


def test_counts_are_those_of_the_files_where_they_are_there(tmp_path: Path) -> None:
    row = {"layer": 0, "feature_id": 0, "cohen_d": 1.0, "abs_d_rank_in_layer": 1, "direction": "safe"}
    row |= {
        "safe_effect": None,
        "risky_effect": None,
        "p_values": {},
        "q_causal": None,
        "n_source_files": 1,
        "joinable": True,
    }
    features = [
        row | {"feature": f"L{layer}-{n}", "layer": layer, "feature_id": n} for layer in (0, 2, 5) for n in range(3)
    ]
    metadata = {"rank_by": "cohen_d", "top_k_per_layer": 3, "layers": [0, 5], "total_causal": 9, "total_filtered": 9}
    metadata |= {"per_layer": {}, "source_fingerprint": "", "forced": False}
    path = tmp_path / FEATURES
    path.parent.mkdir()
    path.write_text(json.dumps({"metadata": metadata, "features": features}))
    plan = planned(**{"paths.out": tmp_path, "discover.batch_size": 2})

    assert plan.targets == {2: 3, 5: 3}
    assert plan.pathways == 3 * 3 + 3 * 6
    assert plan.passes["gradient passes"] == (2 + 2) * 32
    # Of each source: two modes in 32 contexts and 32 directions; of each layer: 64 random features in 8 contexts.
    assert plan.passes["rows of replay"] == 6 * (2 * 32 + 32) + 2 * 64 * 8
    assert Plan(plan.settings, limit=7).targets == {2: 3, 5: 1}


def test_more_targets_cost_in_proportion_and_integrated_gradients_their_steps() -> None:
    one, two = planned(**{"features.top_k_per_layer": 10}), planned(**{"features.top_k_per_layer": 20})

    assert two.operations["gradients"] == pytest.approx(2 * one.operations["gradients"])
    steps = planned(**{"features.top_k_per_layer": 10, "discover.attribution": "ig", "discover.ig_steps": 4})
    assert steps.operations["gradients"] == pytest.approx(4 * one.operations["gradients"])


def test_a_dry_run_writes_nothing_and_says_what_it_counted(tmp_path: Path) -> None:
    config = config_of(right(tmp_path))
    words = ["pathways", "run", "--config", str(config), "--model-name", "tiny-llama", "--dry-run"]
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)

    assert done.exit_code == 0, done.output
    assert "1,258,112 parameters" in done.stdout
    assert not (tmp_path / "out").exists()
    values = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert values["memory_gb"]["at the peak"] > 0
    unknown = CliRunner().invoke(app, [*words, "--model-name", "nobody/nothing"])
    assert (unknown.exit_code, "no model 'nobody/nothing'" in str(unknown.exception)) == (1, True)
