"""Causes that were written into a model are found, gradients are those of the features, and what causes nothing is no cause."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.late import RUNNING

if RUNNING:
    import torch
    from scipy import stats
    from torch import Tensor
    from typer.testing import CliRunner

    from fvcore.embedded.planted import Edge, build
    from fvcore.experiments.sae import attribution, replay
    from fvcore.experiments.sae import bench as benches
    from fvcore.experiments.sae.attribution import gradients, integrated
    from fvcore.experiments.sae.bench import Bench, Columns, Held
    from fvcore.experiments.sae.cli import app
    from fvcore.experiments.sae.config import Discover, Scale
    from fvcore.experiments.sae.pathways import Node, Pathway
    from fvcore.experiments.sae.replay import DIRECTION, ZERO, Edit, Readers, run_edits
    from fvcore.experiments.sae.schemas import Context
    from fvcore.experiments.sae.selftest import (
        BEGIN,
        END,
        OURS,
        Survey,
        calibration,
        null_survey,
        power,
        put_into,
        survey,
    )
    from fvcore.experiments.sae.verdicts import judge
    from fvcore.formats import FormatError
    from fvcore.model.model import LanguageModel
    from fvcore.model.residual import Cached, residual_stream


@pytest.fixture(scope="module")
def one() -> Survey:
    return survey(build(0))


@pytest.fixture(scope="module")
def exact() -> Bench:
    """In double precision, so that a difference of two passes is a slope."""
    bench = benches.planted(build(0, overcomplete=True))
    assert isinstance(bench.store, Held)
    saes = {layer: sae.to("cpu", torch.float64) for layer, sae in bench.store.saes.items()}
    return Bench(LanguageModel.wrap(bench.lm.hf.double(), name="double"), Held(saes), bench.contexts)


def names(one: Survey, edges: set[Edge]) -> set[tuple[str, str]]:
    return {(f"{one.world.name(source)}@{layer}", one.world.name(to)) for (layer, source), (_, to) in edges}


def moved(bench: Bench, context: Context, read: Columns, layer: int, shift: Tensor) -> Tensor:
    stream = residual_stream(bench.lm, bench.ids(context), {layer: lambda hidden: hidden + shift}, last=2)
    return read.pre(stream[2][0, -1])


def test_a_slope_is_the_product_of_a_decoder_row_with_the_gradient_behind_its_layer(exact: Bench) -> None:
    # Norms are computed in single precision whatever the weights are: a difference of two passes must be well above that.
    context, target, step = exact.contexts[0], [3, 7], 1e-2
    read = exact.columns(2, target)
    _, _, hidden, slopes = gradients(exact, context, 2, read, [0, 1])
    for layer in (0, 1):
        columns = exact.columns(layer)
        tokens, features = (columns.encode(hidden[layer]) > 0).nonzero().T[:, :12]
        for token, feature in zip(tokens.tolist(), features.tolist(), strict=True):
            shift = torch.zeros_like(hidden[layer])
            shift[token] = step * columns.directions[feature]
            up, down = (moved(exact, context, read, layer, sign * shift) for sign in (1, -1))
            expected = (up - down) / (2 * step)
            torch.testing.assert_close(
                slopes[layer][:, token] @ columns.directions[feature], expected, rtol=1e-3, atol=1e-4
            )


def test_a_slope_is_that_of_the_features_with_their_error_held_constant(exact: Bench) -> None:
    """The autoencoder is put into the stream with what it leaves over, and its features are what is differentiated."""
    context, layer = exact.contexts[1], 1
    read, columns = exact.columns(2, [3]), exact.columns(1)
    plain = residual_stream(exact.lm, exact.ids(context), last=layer)[layer][0]
    found = columns.encode(plain).requires_grad_()
    error = plain - columns.sae.decode(columns.encode(plain))
    spliced = (columns.sae.decode(found) + error)[None]
    stream: dict[int, Tensor] = {}

    def take(block: Any, args: Any, output: Tensor) -> Tensor:
        return spliced

    handle = exact.lm.blocks[layer].register_forward_hook(take)
    handle2 = exact.lm.blocks[2].register_forward_hook(lambda block, args, output: stream.update({2: output}))
    try:
        exact.lm.hf(input_ids=exact.ids(context), use_cache=False)
    finally:
        handle.remove()
        handle2.remove()
    (expected,) = torch.autograd.grad(read.pre(stream[2][0, -1])[0], found)
    _, _, _, slopes = gradients(exact, context, 2, read, [layer])
    torch.testing.assert_close(slopes[layer][0] @ columns.directions.T, expected)
    assert expected.abs().max() > 0.1


def test_features_errors_and_bias_make_up_the_whole_of_a_layer(exact: Bench) -> None:
    context = exact.contexts[2]
    _, _, hidden, slopes = gradients(exact, context, 2, exact.columns(2, [3]), [0, 1])
    for layer in (0, 1):
        columns, slope = exact.columns(layer), slopes[layer][0]
        found = columns.encode(hidden[layer])
        error = hidden[layer] - columns.sae.decode(found)
        parts = (found * (slope @ columns.directions.T)).sum() + ((error + columns.sae.b_dec) * slope).sum()
        torch.testing.assert_close(parts, (hidden[layer] * slope).sum(), rtol=1e-6, atol=1e-9)
        assert (error * slope).abs().sum() > 0.1  # what is left over is not nothing


def test_gradients_reach_features_of_earlier_layers_and_no_weight(one: Survey) -> None:
    assert all(row.candidates for row in one.targets)
    assert any(c.source.startswith("L0-") for row in one.targets for c in row.candidates)
    assert all(weight.grad is None for weight in one.bench.lm.hf.parameters())


def test_five_targets_of_a_pass_have_the_gradients_that_each_has_alone(one: Survey) -> None:
    context, ids = one.bench.contexts[0], [3, 7, 11, 13, 12]
    together = gradients(one.bench, context, 2, one.bench.columns(2, ids), [0, 1])[3]
    for at, feature in enumerate(ids):
        alone = gradients(one.bench, context, 2, one.bench.columns(2, [feature]), [0, 1])[3]
        for layer in (0, 1):
            torch.testing.assert_close(together[layer][at], alone[layer][0], rtol=1e-4, atol=1e-6)


def test_the_way_to_no_features_adds_up_to_what_their_ablation_does_where_one_gradient_does_not() -> None:
    """Gates that A2 opens itself: its effect is curved. The sum over features of integrated gradients is the effect of all."""
    bench = benches.planted(world := build(0, curved=True))
    a2, b = world.names["A2.0"], world.names["B.0"]
    read, columns = bench.columns(2, [b]), bench.columns(1, [a2])
    straight, curved, true = [], [], []
    for number, context in enumerate(bench.contexts):
        hidden = bench.plain(1, 2)[number].hidden
        found = columns.encode(hidden) * bench.counted(context)[:, None]
        if not found.any():
            continue
        part = found @ columns.directions
        slope = gradients(bench, context, 2, read, [1])[3][1][0]
        mean = integrated(bench, context, 2, read, Cached(1, hidden), part, 16)[0]
        without = Cached(1, (hidden - part)[None])
        after = residual_stream(bench.lm, bench.ids(context), last=2, start=without)[2][0, -1]
        straight.append(float((part * slope).sum()))
        curved.append(float((part * mean).sum()))
        true.append(float((read.pre(bench.plain(1, 2)[number].ends[2]) - read.pre(after))[0]))
    assert sum(curved) == pytest.approx(sum(true), rel=0.01)
    assert abs(sum(straight) / sum(true) - 1) > 0.25


def test_integrated_gradients_are_a_way_to_screen_as_well() -> None:
    world = build(0, n_contexts=6)
    found = survey(world, Discover(attribution="ig", ig_steps=2)).targets
    best = {Node.of(row.target): {Node.of(one.source) for one in row.candidates[:4]} for row in found}
    names = world.names
    assert {Node(0, names["A.0"]), Node(1, names["A2.0"])} <= best[Node(2, names["B.0"])]
    assert Node(0, names["A.1"]) in best[Node(1, names["A2.1"])]


def test_every_planted_cause_is_validated_and_no_decoy(one: Survey) -> None:
    found, wanted = names(one, one.validated), names(one, set(one.world.true))
    assert {("A.0@0", "B.0"), ("A2.0@1", "B.0"), ("BIAS@1", "B.0"), ("BIAS@1", "N"), ("A.0@0", "A2.0")} <= wanted
    assert wanted <= found
    assert not {(source, to) for source, to in found if source[0] in "CES" or source.startswith("null")}
    assert found - wanted <= names(one, set(one.world.open))


def test_random_rows_that_overlap_are_seldom_taken_for_causes() -> None:
    found = survey(world := build(0, overcomplete=True)).validated
    assert len(found & world.true) >= 0.8 * len(found - world.open)
    assert len(found & world.true) >= 0.8 * len(world.true)


def test_neither_another_run_nor_another_size_of_batches_changes_what_is_found(one: Survey) -> None:
    again = survey(build(0))
    assert again.pathways == one.pathways
    single = survey(build(0), Discover(batch_size=1))
    assert single.validated == one.validated
    for first, second in zip(single.pathways, one.pathways, strict=True):
        assert first.delta_mean == pytest.approx(second.delta_mean, rel=1e-3, abs=1e-4)


def test_what_stands_beside_a_verdict_is_what_the_rows_hold(one: Survey) -> None:
    row = by_name(one, "A2.0", 1, "B.0")
    replayed = next(r for r in one.replays if (r.source, r.target) == (row.source, row.target))
    per_length = [delta / norm for delta, norm in zip(replayed.deltas[ZERO], replayed.norms, strict=True)]
    z = sum(per_length) / len(per_length) / replayed.directions
    assert row.z == pytest.approx(z, rel=1e-5)
    assert row.p_directions == pytest.approx(2 * stats.t.sf(abs(z), replayed.n_directions - 1), rel=1e-4)
    assert row.p_value == max(row.p_directions or 0, row.p_features or 0)
    tested = [one_row for one_row in one.pathways if one_row.p_value is not None]
    corrected = stats.false_discovery_control([p.p_value for p in tested])
    assert [p.q_value for p in tested] == pytest.approx(list(corrected), rel=1e-5)
    assert replayed.n_directions == one.settings.replay.control_directions
    assert row.switches_off == pytest.approx(1.0, abs=0.2)
    assert row.correlation is not None
    assert row.correlation > 0.9


def by_name(one: Survey, source: str, layer: int, target: str) -> Pathway:
    pair = Node(layer, one.world.names[source]).name, Node(2, one.world.names[target]).name
    return next(row for row in one.pathways if (row.source, row.target) == pair)


def test_ablation_and_amplification_are_of_opposite_signs_and_one_that_is_not_is_no_cause(one: Survey) -> None:
    row = by_name(one, "A.0", 0, "B.0")
    assert row.amplify is not None
    assert row.delta_mean is not None
    assert row.delta_mean < 0 < row.amplify["delta_mean"]
    replays = [
        r.model_copy(update={"deltas": r.deltas | {"scale 2": r.deltas[ZERO]}}) if r.source == row.source else r
        for r in one.replays
    ]
    nulled = one.rows(nulls_of(one))
    changed = judge(one.targets, replays, nulled, one.bench.contexts, one.settings)
    verdict = next(r for r in changed if (r.source, r.target) == (row.source, row.target))
    assert verdict.status == "mode_disagreement"


def nulls_of(one: Survey) -> Any:
    from fvcore.experiments.sae.batches import nulls

    return nulls(one.targets, one.settings, one.seed)


def test_the_same_value_again_changes_nothing_and_an_inactive_source_cannot_be_tested(one: Survey) -> None:
    bench, own = one.bench, one.settings.replay
    target = Node(2, one.world.names["B.0"])
    silent = Node(0, one.world.names["B.1"])  # written by block 2 alone
    rows = replay.replay(bench, {silent: [target]}, 1.0, own, 0)
    assert rows[0].contexts == []
    assert all(row.noop <= 1e-5 for row in one.replays)
    candidate = one.targets[3].candidates[0].model_copy(update={"source": silent.name})
    told = one.targets[3].model_copy(update={"candidates": [candidate]})
    (verdict,) = judge([told], rows, [], bench.contexts, one.settings)
    assert (verdict.status, verdict.q_value) == ("source_inactive", None)


def test_a_pass_from_the_cached_layer_is_the_whole_pass_with_an_edit_in_it(one: Survey) -> None:
    bench, context = one.bench, one.bench.contexts[0]
    plain = bench.plain(1, 2)[0]
    lengths = torch.linspace(-1, 1, context.n_tokens)
    direction = bench.columns(1).directions[5]
    readers = Readers(bench, [Node(2, 3), Node(2, 7)])
    before, _ = run_edits(bench, context, Cached(1, plain.hidden), [Edit(0, ZERO, lengths, direction)], readers)
    whole = residual_stream(bench.lm, bench.ids(context), {1: lambda h: h + lengths[:, None] * direction}, last=2)
    torch.testing.assert_close(before[1], bench.columns(2, [3, 7]).pre(whole[2][0, -1]))
    assert (before[0] - before[1]).abs().max() > 0.01


def test_the_last_token_alone_hides_what_stands_before_it(one: Survey) -> None:
    last = Survey(one.world, Discover(positions="last"), one.sources)
    last.__dict__["bench"] = Bench(one.bench.lm, one.bench.store, one.bench.contexts, positions="last")
    source = Node(0, one.world.names["A.0"]).name
    assert any(c.source == source for row in one.targets for c in row.candidates)
    assert not any(c.source == source for row in last.targets for c in row.candidates)


def test_a_special_token_counts_in_no_sum(one: Survey) -> None:
    sink = one.world.names["S"]
    columns = one.bench.columns(0, [sink])
    assert float(columns.encode(one.bench.plain(0, 0)[0].hidden)[0, 0]) > 10
    assert not any(of.any() for of in replay.found_in(one.bench, 0, 0, columns))
    counted = Bench(one.bench.lm, one.bench.store, one.bench.contexts, exclude_special=False)
    rows = attribution.attribute(counted, [Node(2, one.world.names["N"])], {0: None}, one.settings)
    assert Node(0, sink).name in {c.source for c in rows[0].candidates}


def test_a_random_direction_has_the_tokens_of_its_source_and_the_usual_size(one: Survey) -> None:
    source, taken = Node(0, one.world.names["A.1"]), []
    original = replay.run_edits

    def spy(bench: Bench, context: Any, cached: Cached, edits: Any, readers: Any) -> Any:
        taken.extend(edits)
        return original(bench, context, cached, edits, readers)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(replay, "run_edits", spy)
        replay.replay(one.bench, {source: [Node(2, one.world.names["B.1"])]}, 0.7, one.settings.replay, 0)
    drawn = [edit for edit in taken if edit.what == DIRECTION]
    own = [edit for edit in taken if edit.what == ZERO]
    assert len(drawn) == one.settings.replay.control_directions
    assert {round(float(edit.lengths.norm()), 5) for edit in drawn} == {0.7}
    places = {tuple((edit.lengths != 0).tolist()) for edit in own}
    assert {tuple((edit.lengths != 0).tolist()) for edit in drawn} <= places


@pytest.mark.slow
def test_features_that_cause_nothing_are_validated_no_more_often_than_chance_allows() -> None:
    found = calibration([null_survey(0), null_survey(1)])
    assert found["n"] >= 200
    assert found["validated"] <= found["bound"]
    assert found["p <= 0.05, random directions"] <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / found["n"])
    assert found["Wilcoxon's test of replays against 0"] > 0.15  # what "not 0" is worth


def test_a_larger_effect_is_found_and_one_that_is_not_there_is_not() -> None:
    effects = (0.0, 0.1, 0.5)
    none, _, large = power({effects: [survey(build(1, effects)), survey(build(2, effects))]})
    assert none["A validated"] == none["A2 validated"] == 0
    assert large["A validated"] == large["A2 validated"] == 1
    assert none["A measured"] < 0.1 < 0.4 < large["A measured"]


def test_a_number_that_is_none_is_an_error_and_no_effect() -> None:
    world = build(0)
    with torch.no_grad():
        world.hf.model.layers[2].mlp.down_proj.weight.fill_(torch.inf)
    rows = survey(world).targets
    assert {row.status for row in rows if row.target.startswith("L2-")} == {"numeric_error"}
    assert not any(row.candidates for row in rows if row.status == "numeric_error")


def test_a_target_that_is_active_nowhere_is_said_to_be_and_has_no_candidates(one: Survey) -> None:
    """Its threshold may be 0, as in TopK autoencoders, and then there is no scale that anything could be a part of."""
    assert isinstance(one.bench.store, Held)
    sae, silent = one.bench.store.saes[2], one.world.names["E"]
    without = replace(sae, threshold=sae.threshold * 0, b_enc=sae.b_enc - 100 * (torch.arange(sae.d_sae) == silent))
    bench = Bench(one.bench.lm, Held(dict(one.bench.store.saes) | {2: without}), one.bench.contexts)
    (row,) = attribution.attribute(bench, [Node(2, silent)], one.sources, one.settings)
    assert (row.status, row.scale, row.candidates) == ("target_inactive", 0.0, [])


def test_a_topk_autoencoder_is_asked_as_a_whole(one: Survey) -> None:
    """Which features are active depends on all; of a part of them the activations are the same."""
    assert isinstance(one.bench.store, Held)
    sae = one.bench.store.saes[1]
    whole = replace(sae, k=4)
    bench = Bench(one.bench.lm, Held({1: whole}), one.bench.contexts)
    hidden = one.bench.plain(1, 1)[0].hidden
    ids = [12, 2, 6]
    torch.testing.assert_close(bench.columns(1, ids).encode(hidden), whole.encode(hidden)[:, ids])
    torch.testing.assert_close(bench.columns(1, ids).pre(hidden), whole.pre(hidden)[:, ids])


def test_modes_are_what_the_settings_say_and_ablation_is_always_among_them() -> None:
    own = Discover().replay
    assert replay.modes_of(own) == {"zero": 0.0, "scale 2": 2.0}
    assert replay.modes_of(own.model_copy(update={"modes": (Scale(scale=0.5),)})) == {"zero": 0.0, "scale 0.5": 0.5}


@pytest.mark.slow
def test_the_command_says_how_often_it_is_right_and_writes_that_between_the_marks_of_a_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    done = CliRunner().invoke(app, ["selftest", "--seed", "1", "--markdown", str(page), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    ours = found["comparison"]["apart"][OURS]
    assert ours["precision"] >= 0.95
    assert ours["recall"] >= 0.9
    for table in found["comparison"].values():
        assert table[OURS]["precision"] == max(row["precision"] for row in table.values())
    text = page.read_text()
    assert text.startswith(f"before\n{BEGIN}\n")
    assert text.endswith(f"{END}\nafter\n")
    assert "old" not in text
    assert f"| {OURS} | {ours['found']} | {ours['false']} |" in text


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("no marks\n")
    with pytest.raises(FormatError, match=r"page\.md: expected the lines"):
        put_into(page, {})
