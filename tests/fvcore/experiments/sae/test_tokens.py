"""Which tokens go with a feature: the tests are calibrated, planted words are found, and texts are what they are."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.experiments.sae import lens
    from fvcore.experiments.sae.association import Ids, Table, compare
    from fvcore.experiments.sae.config import Tokens
    from fvcore.experiments.sae.load import load
    from fvcore.experiments.sae.steps import TOKENS
    from fvcore.experiments.sae.tokens import encode, tokens
    from fvcore.experiments.statistics import fisher
    from fvcore.model.model import load as load_model
    from fvcore.model.model import load_tokenizer
    from tests.fvcore.experiments.sae import worlds


if TYPE_CHECKING:
    from pathlib import Path


TRIALS = 24


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return load_tokenizer("tiny-llama")


def own(**values: Any) -> Tokens:
    return Tokens(**values)


def bursty(random: np.random.Generator, n: int = 30, length: int = 100) -> list[Ids]:
    """Responses by one rule, each of which says a few words of its own over and over."""
    common = 1 / np.arange(1, 201)
    shares = [random.dirichlet(8 * common / common.sum()) for _ in range(n)]
    return [random.choice(200, length, p=share) for share in shares]


@pytest.mark.parametrize(
    ("mode", "least", "most"),
    [("response_fisher", 0.0, 0.06), ("permutation", 0.0, 0.06), ("token_chi2_legacy", 0.3, 1.0)],
)
def test_where_nothing_differs_a_test_says_so_as_often_as_it_should(mode: Any, least: float, most: float) -> None:
    random = np.random.default_rng(0)
    tables = [Table(bursty(random), bursty(random), 3) for _ in range(12)]
    p_values = np.concatenate([table.p_values(mode, 0.05, str(at)) for at, table in enumerate(tables)])
    assert len(p_values) > 1000
    assert least <= (p_values <= 0.05).mean() <= most


def test_where_nothing_differs_little_is_listed_but_by_the_plan(tokenizer: Any) -> None:
    random = np.random.default_rng(0)
    sides = [(bursty(random), bursty(random)) for _ in range(10)]
    found = {
        mode: [compare(*both, own(mode=mode), "0", tokenizer) for both in sides]
        for mode in ("response_fisher", "permutation", "token_chi2_legacy")
    }
    with_any = {mode: sum(bool(one.added or one.removed) for one in of) for mode, of in found.items()}
    # Any at all in .05 of comparisons, so in more than 2 of 10 with a chance of .012.
    assert max(with_any["response_fisher"], with_any["permutation"]) <= 2
    assert with_any["token_chi2_legacy"] == len(sides)


def test_numbers_are_those_of_their_formulas() -> None:
    from scipy.stats import chi2_contingency, fisher_exact

    random = np.random.default_rng(1)
    sides = bursty(random), bursty(random, 25, 60)
    table = Table(*sides, 3)
    exact, plan, z, odds = table.exact(), table.chi2(), table.z(), table.log_odds()
    n_b, n_p = 3000, 1500
    for at, token in enumerate(table.vocabulary.tolist()):
        c_b, c_p = (sum(int((ids == token).sum()) for ids in side) for side in sides)
        d_b, d_p = (sum(bool((ids == token).any()) for ids in side) for side in sides)
        assert exact[at] == pytest.approx(fisher_exact([[d_p, 25 - d_p], [d_b, 30 - d_b]]).pvalue)
        assert plan[at] == pytest.approx(chi2_contingency([[c_p, n_p - c_p], [c_b, n_b - c_b]]).pvalue)
        assert odds[at] == pytest.approx(np.log((c_p + 0.5) / (n_p - c_p + 0.5) * (n_b - c_b + 0.5) / (c_b + 0.5)))
        prior = 500 * (c_b + c_p) / (n_b + n_p)
        logits = [np.log((c + prior) / (n + 500 - c - prior)) for c, n in ((c_p, n_p), (c_b, n_b))]
        assert z[at] == pytest.approx((logits[0] - logits[1]) / np.sqrt(1 / (c_p + prior) + 1 / (c_b + prior)))


def planted(tokenizer: Any, added: str, removed: str, n: int = 30) -> tuple[list[Ids], list[Ids]]:
    """Two sides of `n` responses by one rule, with a word in most of one side alone, and another in most of the other."""
    random, words = np.random.default_rng(2), [f" {word}" for word in ("one", "two", "six", "ten", "low", "odd")]
    texts = ["".join(random.choice(words, 12)) for _ in range(2 * n)]
    said = [removed] * n + [added] * n
    whole = [text + word * (at % 5 > 0) for at, (text, word) in enumerate(zip(texts, said, strict=True))]
    ids = encode(tokenizer, whole)
    return ids[:n], ids[n:]


def listed(rows: Sequence[Any]) -> set[int]:
    return {row.token_id for row in rows}


@pytest.mark.parametrize("mode", ["response_fisher", "permutation", "token_chi2_legacy"])
@pytest.mark.parametrize(("added", "removed"), [(" bet", " stop"), (" é", " 漢"), ("🎲", "⏎")])
def test_a_planted_word_is_found_on_its_side_whatever_its_letters(
    tokenizer: Any, mode: Any, added: str, removed: str
) -> None:
    found = compare(*planted(tokenizer, added, removed), own(mode=mode), "0", tokenizer)
    only = [set(ids.tolist()) - set(other.tolist()) for ids, other in _both(tokenizer, added, removed)]
    assert only[0] <= listed(found.added)
    assert only[1] <= listed(found.removed)
    assert not listed(found.added) & listed(found.removed)
    assert found.calibrated == (mode != "token_chi2_legacy")
    for row in (*found.added, *found.removed):
        assert row.token == tokenizer.decode([row.token_id])
        assert row.piece == tokenizer.convert_ids_to_tokens(row.token_id)
        assert abs(row.log_odds) > 0.5
        assert (row.patched_df > row.baseline_df) == (row.log_odds > 0) == (row.z > 0)


def _both(tokenizer: Any, *words: str) -> list[tuple[Ids, Ids]]:
    first, second = encode(tokenizer, list(words))
    return [(first, second), (second, first)]


def test_a_single_token_can_pass_the_permutation_test_among_many() -> None:
    sides = [[np.arange(300 + at) for _ in range(20)] for at in range(2)]
    p_values = Table(sides[0], sides[1], 3).permuted(0.05, "0")
    assert (p_values[:300] == 1).all()
    assert p_values[300] * len(p_values) <= 0.05


def test_few_responses_are_not_compared_and_rare_tokens_not_tested(tokenizer: Any) -> None:
    baseline, patched = planted(tokenizer, " bet", " stop")
    few = compare(baseline, patched[:9], own(), "0", tokenizer)
    assert (few.status, few.n_patched, few.added, few.removed) == ("insufficient", 9, [], [])
    assert compare(baseline[:10], patched[:10], own(), "0", tokenizer).status == "ok"
    rare = [*patched[:28], *(np.r_[ids, 499] for ids in patched[28:])]
    assert 499 not in Table(baseline, rare, 3).vocabulary
    assert 499 in Table(baseline, rare, 2).vocabulary


def test_an_empty_response_is_a_response_without_tokens(tokenizer: Any) -> None:
    (nothing,) = encode(tokenizer, [""])
    said = encode(tokenizer, ["one"] * 12)
    found = compare([nothing] * 12 + said, said * 2, own(), "0", tokenizer)
    assert (found.n_baseline, found.n_patched, found.n_empty) == (24, 24, 12)
    table = Table([nothing] * 12 + said, said * 2, 3)
    assert table.exact().tolist() == pytest.approx([fisher(24, 0, 12, 12)] * len(table.vocabulary))
    none = compare([nothing] * 12, [nothing] * 12, own(), "0", tokenizer)
    assert (none.status, none.tokens_tested, none.added) == ("ok", 0, [])


def test_a_token_that_begins_responses_says_so(tokenizer: Any) -> None:
    texts = ["bet one" for _ in range(20)], ["two one" for _ in range(20)]
    found = compare(encode(tokenizer, texts[1]), encode(tokenizer, texts[0]), own(), "0", tokenizer)
    first = int(encode(tokenizer, ["bet one"])[0][0])
    assert {row.token_id: row.boundary for row in found.added}[first]
    later = compare(encode(tokenizer, ["one two"] * 20), encode(tokenizer, ["one bet"] * 20), own(), "0", tokenizer)
    assert not any(row.boundary for row in later.added)


def logged(root: Path) -> worlds.Data:
    """Two features, of which the first's patch brings a word; a trial stands there twice, and half a pair once."""
    data = worlds.right(root, 2)
    for number, name in enumerate(("L1-0", "L2-1"), start=1):
        data.files[f"l{number}.json"] = worlds.records([name], TRIALS)
        for row in data.files[f"l{number}.json"]:
            row["response"] = f"one {'two' if row['trial'] % 2 else 'ten'}"
    rows = [row for row in data.files["l1.json"] if row["condition"] == "safe_with_risky_patch"]
    for row in rows:
        row["response"] += " bet"
    data.files["l1.json"] += [rows[0] | {"response": "seven"}]
    data.files["l2.json"][0]["response"] = "half \ud800"
    return data


def run(data: worlds.Data, **more: Any) -> dict[str, Any]:
    data.write()
    given = {"model.name": "tiny-llama", "tokens.logit_lens.enabled": False} | more
    settings = data.settings(**given)
    load(settings, forced=True)
    (path,) = tokens(settings)
    assert path == settings.paths.out / TOKENS
    return dict(json.loads(path.read_text()))


def test_the_step_finds_what_a_patch_brings_and_counts_a_trial_once(tmp_path: Path, tokenizer: Any) -> None:
    file = run(logged(tmp_path))
    found = file["token_associations"]
    brings = [name for name, of in found.items() if of["comparisons"]["risky_patch_on_safe"]["added"]]
    assert brings == ["L1-0"]
    risky = found["L1-0"]["comparisons"]["risky_patch_on_safe"]
    assert {row["token_id"] for row in risky["added"]} == set(encode(tokenizer, [" bet"])[0].tolist())
    assert (risky["n_baseline"], risky["n_patched"]) == (TRIALS, TRIALS)
    assert file["metadata"]["repeated_trials_left_out"] == 1
    assert file["metadata"]["mode"] == "response_fisher"


def test_a_pool_is_of_all_features_and_the_same_for_each(tmp_path: Path) -> None:
    for most, expected in ((2000, 2 * TRIALS), (30, 30)):
        more = {"tokens.baseline_pool": "pooled", "tokens.pooled_max": most}
        of = run(logged(tmp_path), **more)["token_associations"].values()
        assert {one["comparisons"]["risky_patch_on_safe"]["n_baseline"] for one in of} == {expected}


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-gpt2"])
def test_the_logit_lens_is_the_head_times_the_norm_s_weight_times_the_direction(name: str) -> None:
    lm = load_model(name)
    directions = torch.nn.functional.normalize(torch.randn(3, lm.d_model, generator=torch.Generator().manual_seed(0)))
    norm = lm.hf.model.norm if name == "tiny-llama" else lm.hf.transformer.ln_f
    read = directions
    if name == "tiny-gpt2":
        centred = directions - directions.mean(1, keepdim=True)
        read = torch.nn.functional.normalize(centred)
    expected = (read * norm.weight) @ lm.hf.get_output_embeddings().weight.T
    expected = (expected - expected.mean(1, keepdim=True)).detach()
    torch.testing.assert_close(lens.read(lm, directions), expected, rtol=1e-3, atol=1e-5)
    for row, scores in zip(lens.ranked(lm, directions, 5), expected, strict=True):
        assert [one.token_id for one in row.top] == scores.topk(5).indices.tolist()
        assert [one.token_id for one in row.bottom] == (-scores).topk(5).indices.tolist()
