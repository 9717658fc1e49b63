"""What screening passed over: a cause that is hidden from the candidates is noticed, and bounds are those of counting."""

from __future__ import annotations

from itertools import combinations
from random import Random

import pytest

from fvcore.experiments.sae.config import PathwaysConfig
from tests.late import RUNNING

if RUNNING:
    from fvcore.embedded.planted import Planted, build
    from fvcore.experiments.sae import bench as benches
    from fvcore.experiments.sae.attribution import attribute
    from fvcore.experiments.sae.bench import Bench
    from fvcore.experiments.sae.missed import CONTEXTS, SETS, SIZE, at_most, batches, drawn, missed, spread, upper
    from fvcore.experiments.sae.pathways import Node, TargetRow


SETTINGS = PathwaysConfig().discover


@pytest.fixture(scope="module")
def world() -> Planted:
    return build()


@pytest.fixture(scope="module")
def bench(world: Planted) -> Bench:
    return benches.planted(world)


@pytest.fixture(scope="module")
def row(world: Planted, bench: Bench) -> TargetRow:
    (found,) = attribute(bench, [Node(2, world.names["B.0"])], {0: None, 1: None}, SETTINGS)
    return found


def test_nothing_of_weight_lies_beside_the_candidates(bench: Bench, row: TargetRow) -> None:
    (found,) = missed(bench, [row], [0, 1], SETTINGS, 0)
    assert found.n_sets == SETS
    assert found.n_moving == 0
    assert found.share == pytest.approx(1 - 0.05 ** (1 / SETS), rel=1e-4)
    assert found.at_most < found.n_active / 20


def test_a_cause_that_is_left_out_of_the_candidates_is_noticed(world: Planted, bench: Bench, row: TargetRow) -> None:
    """A2 stands at layer 1, where it alone makes the target; sets that hold it move it."""
    hidden = Node(1, world.names["A2.0"]).name
    others = [one for one in row.candidates if one.source != hidden]
    (found,) = missed(bench, [row.model_copy(update={"candidates": others})], [0, 1], SETTINGS, 0)
    assert found.n_moving >= 1
    assert found.largest > 0.5
    assert found.at_most >= 1


def test_batches_hold_active_targets_by_layer(row: TargetRow, bench: Bench) -> None:
    inactive = row.model_copy(update={"target": "L1-0", "status": "target_inactive"})
    (only,) = batches([row, inactive], [0, 1], SETTINGS, 0)
    assert (only.kind, only.layer) == ("missed", 2)
    assert list(only.work(bench)) == missed(bench, [row], [0, 1], SETTINGS, 0)


@pytest.mark.parametrize("n", [5, 9, 12])
def test_at_most_is_what_enumeration_says(n: int) -> None:
    """Of so many features, m of them moving, the share of sets that hold one."""
    sets = [set(one) for one in combinations(range(n), SIZE)]
    shares = [sum(bool(one & set(range(m))) for one in sets) / len(sets) for m in range(n + 1)]
    for bound in (0.0, 0.049, 0.3, 0.5, 0.99):
        assert at_most(n, bound) == max(m for m in range(n + 1) if shares[m] <= bound)


def test_the_bound_of_a_share_holds_as_often_as_it_says() -> None:
    """Of 60 draws at a true share of .1, the bound lies below it in at most one case in 20."""
    random, below, trials = Random(0), 0, 2000
    for _ in range(trials):
        below += upper(sum(random.random() < 0.1 for _ in range(60)), 60) < 0.1
    assert below / trials <= 0.05 + 3 * (0.05 * 0.95 / trials) ** 0.5
    assert upper(60, 60) == 1.0


def test_sets_are_drawn_from_layers_by_their_weight() -> None:
    sets = drawn({0: list(range(90)), 1: list(range(10)), 2: []}, Random(1))
    assert sum(map(len, sets.values())) == SETS
    assert len(sets[0]) > 3 * len(sets[1])
    assert all(len(set(one)) == SIZE for of in sets.values() for one in of)
    assert 2 not in sets


@pytest.mark.parametrize("n", [1, 7, 8, 9, 16, 33])
def test_contexts_are_spread_over_all(n: int) -> None:
    chosen = list(spread(n))
    assert 1 <= len(chosen) <= CONTEXTS
    assert n - chosen[-1] <= -(-n // CONTEXTS)
