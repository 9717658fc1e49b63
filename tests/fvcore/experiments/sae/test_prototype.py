"""One feature of the planted model from end to end, and what the test of it must notice."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.embedded.planted import Planted, build
    from fvcore.experiments.config import ConfigError, resolve
    from fvcore.experiments.sae import bench as benches
    from fvcore.experiments.sae import prototype
    from fvcore.experiments.sae.bench import Bench, Held
    from fvcore.experiments.sae.config import PathwaysConfig
    from fvcore.experiments.sae.instrumentation import instrumented
    from fvcore.experiments.sae.prototype import SingleFeatureTest, examined
    from fvcore.experiments.sae.schemas import Feature


@pytest.fixture(scope="module")
def world() -> Planted:
    return build()


@pytest.fixture(scope="module")
def bench(world: Planted) -> Bench:
    """With autoencoders that also hold what every token has of the directions that no feature reads."""
    plain = benches.planted(world)
    streams = [instrumented(plain, context, 3, "hooks") for context in plain.contexts]
    saes = {}
    for layer in range(plain.lm.n_layers):
        sae, stream = plain.store.sae(layer), torch.cat([one[layer][1:] for one in streams])
        saes[layer] = replace(sae, b_dec=(stream - sae.decode(sae.encode(stream))).mean(0))
    return replace(plain, store=Held(saes), kept={})


def settings(feature: str = "auto", **more: Any) -> PathwaysConfig:
    given = {"features.layers": (0, 2), "prototype.feature": feature, "discover.replay.control_directions": 8}
    return resolve(PathwaysConfig, given | more)


def features(world: Planted) -> list[Feature]:
    """All of layers 0 to 2."""
    return [
        Feature(
            feature=f"L{layer}-{number}",
            layer=layer,
            feature_id=number,
            cohen_d=1.0 / (1 + number),
            abs_d_rank_in_layer=number + 1,
            direction="risky",
            safe_effect=None,
            risky_effect=None,
            p_values={},
            q_causal=None,
            n_source_files=1,
            joinable=True,
        )
        for layer in range(3)
        for number in range(len(world.rows))
    ]


def nothing(at: int, n: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def of_b(world: Planted, bench: Bench) -> SingleFeatureTest:
    return examined(bench, features(world), settings(f"L2-{world.names['B.0']}"), nothing)


def test_a_feature_that_is_caused_passes_every_check(world: Planted, of_b: SingleFeatureTest) -> None:
    assert of_b.criteria == dict.fromkeys(of_b.criteria, True), of_b.warnings
    assert of_b.passed
    assert of_b.memory_usage_gb == of_b.memory["peak_gb"] > 0
    assert of_b.replay_checks["noop"] <= 1e-5
    assert {one.source for one in of_b.gradient_candidates} >= {f"L1-{world.names['A2.0']}"}


def test_what_is_active_beside_a_feature_is_not_what_causes_it(world: Planted, of_b: SingleFeatureTest) -> None:
    """The word that begins the chain stands earlier than the last token, where the plan looks."""
    active = {one.source for one in of_b.upstream_candidates}
    assert f"L0-{world.names['BIAS']}" in active
    assert f"L0-{world.names['A.0']}" not in active
    assert f"L0-{world.names['A.0']}" in {one.source for one in of_b.gradient_candidates}
    assert all(sum(one.source_layer == layer for one in of_b.upstream_candidates) <= 10 for layer in (0, 1))


def test_auto_takes_the_strongest_of_the_middle_layers_that_is_active(world: Planted, bench: Bench) -> None:
    found = examined(bench, features(world), settings(), nothing)
    assert found.feature.startswith("L1-")
    assert found.target_activation > 0


def test_hidden_states_equal_hooks_but_for_the_last_layer(bench: Bench) -> None:
    context, last = bench.contexts[0], bench.lm.n_layers - 1
    hooks = instrumented(bench, context, last, "hooks")
    states = instrumented(bench, context, last - 1, "hidden_states")
    assert list(states) == list(range(last))
    for layer, hidden in states.items():
        torch.testing.assert_close(hidden, hooks[layer], rtol=0, atol=0)
    with pytest.raises(ConfigError, match="the last one"):
        instrumented(bench, context, last, "hidden_states")


def test_the_library_shows_the_last_layer_behind_the_final_norm(bench: Bench) -> None:
    ids = bench.ids(bench.contexts[0])
    shown = bench.lm.hf(input_ids=ids, output_hidden_states=True).hidden_states[-1]
    hook = instrumented(bench, bench.contexts[0], bench.lm.n_layers - 1, "hooks")[bench.lm.n_layers - 1]
    assert not torch.allclose(shown[0], hook, atol=0.1)
    torch.testing.assert_close(bench.lm.hf.model.norm(hook), shown[0])


def test_both_instruments_give_the_same_test(world: Planted, bench: Bench, of_b: SingleFeatureTest) -> None:
    name = of_b.feature
    other = examined(bench, features(world), settings(name, **{"prototype.instrumentation": "hidden_states"}), nothing)
    same = {"memory", "memory_usage_gb", "timing", "instrumentation"}
    assert other.model_dump(exclude=same) == of_b.model_dump(exclude=same)


def test_an_autoencoder_of_another_scale_does_not_pass(world: Planted, bench: Bench, of_b: SingleFeatureTest) -> None:
    saes = {layer: bench.store.sae(layer) for layer in range(bench.lm.n_layers)}
    saes[1] = replace(saes[1], w_dec=3 * saes[1].w_dec)
    found = examined(replace(bench, store=Held(saes), kept={}), features(world), settings(of_b.feature), nothing)
    assert not found.criteria["autoencoders_fit"]
    assert any(said.startswith("layer 1: decoder rows") for said in found.warnings)
    assert not found.passed


def test_a_limit_of_memory_is_kept(world: Planted, bench: Bench, of_b: SingleFeatureTest) -> None:
    found = examined(bench, features(world), settings(of_b.feature, **{"prototype.max_memory_gb": 0.001}), nothing)
    assert [name for name, held in found.criteria.items() if not held] == ["memory_ok"]


def test_memory_that_runs_out_is_no_crash(
    world: Planted, bench: Bench, of_b: SingleFeatureTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(prototype, "attribute", full)
    found = examined(bench, features(world), settings(of_b.feature), nothing)
    assert not found.criteria["no_oom"]
    assert not found.passed


def test_a_feature_that_is_never_active_does_not_pass(world: Planted, bench: Bench) -> None:
    """E is in one word, which no context ends with."""
    found = examined(bench, features(world), settings(f"L2-{world.names['E']}"), nothing)
    assert not found.criteria["activations_recorded"]
    assert not found.passed
