"""An effect divided among heads: what was planted into one head is found there, and parts add up."""

from __future__ import annotations

from statistics import fmean

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch
    from torch import Tensor

    from fvcore.embedded.planted import Planted, build
    from fvcore.experiments.sae import bench as benches
    from fvcore.experiments.sae.bench import Bench
    from fvcore.experiments.sae.heads import HeadSplit, split
    from fvcore.experiments.sae.pathways import Node
    from fvcore.model.residual import residual_stream


@pytest.fixture(scope="module", params=[False, True], ids=["straight", "curved"])
def world(request: pytest.FixtureRequest) -> Planted:
    return build(curved=request.param)


@pytest.fixture(scope="module")
def bench(world: Planted) -> Bench:
    return benches.planted(world)


def of(world: Planted, bench: Bench, source: tuple[int, str], target: tuple[int, str]) -> HeadSplit:
    (row,) = split(bench, Node(source[0], world.names[source[1]]), [Node(target[0], world.names[target[1]])])
    return row


def parts(row: HeadSplit) -> float:
    return row.stays + sum(one.part for one in row.heads) + row.other_heads


def test_parts_add_up_to_the_effect(world: Planted, bench: Bench) -> None:
    for source, target in (((0, "A.0"), (2, "B.0")), ((1, "A2.0"), (2, "B.0")), ((0, "BIAS"), (2, "N"))):
        row = of(world, bench, source, target)
        assert parts(row) == pytest.approx(row.total, rel=2e-3), (source, target)
        assert row.rest == pytest.approx(row.total - parts(row), abs=1e-5)


def test_what_one_head_moves_is_that_head_s(world: Planted, bench: Bench) -> None:
    """The word stands earlier; block 1 brings it to the last token, and block 2's MLP makes the target of it."""
    row = of(world, bench, (0, "A.0"), (2, "B.0"))
    attention = bench.lm.hf.model.layers[1].self_attn
    carrying = attention.v_proj.weight @ world.rows[world.names["A.0"]]
    (head,) = carrying.view(bench.lm.n_heads, -1).norm(dim=1).gt(1e-3).nonzero().flatten().tolist()
    assert (row.heads[0].layer, row.heads[0].head) == (1, head)
    assert row.heads[0].part == pytest.approx(row.total, rel=0.05)
    assert abs(row.stays) < 0.05 * abs(row.total)


def test_what_stands_in_the_token_itself_needs_no_head(world: Planted, bench: Bench) -> None:
    row = of(world, bench, (1, "A2.0"), (2, "B.0"))
    assert row.stays == pytest.approx(row.total, rel=0.05)


def test_the_effect_is_that_of_a_pass_without_the_source(world: Planted, bench: Bench) -> None:
    """Mean over some contexts with the word, by whole passes over edited streams."""
    source, target = world.names["A.0"], world.names["B.0"]
    row, found = of(world, bench, (0, "A.0"), (2, "B.0")), list[float]()
    direction = world.rows[source]

    def without(hidden: Tensor) -> Tensor:
        along = hidden @ direction
        along = torch.where(along > world.threshold, along, 0) * (torch.arange(hidden.shape[1]) > 0)
        return hidden - along[..., None] * direction

    for context in bench.contexts:
        ids = bench.ids(context)
        before, after = (residual_stream(bench.lm, ids, edits, last=2)[2][0, -1] for edits in ({}, {0: without}))
        if not torch.equal(before, after):
            found.append(float((after - before) @ world.rows[target]))
    assert row.total == pytest.approx(fmean(found[:: -(-len(found) // 8)]), rel=1e-3)


def test_several_targets_share_the_passes_and_change_nothing(world: Planted, bench: Bench) -> None:
    source, targets = Node(0, world.names["A.0"]), [Node(2, world.names["B.0"]), Node(1, world.names["A2.0"])]
    together = split(bench, source, targets)
    assert together == [row for target in targets for row in split(bench, source, [target])]
