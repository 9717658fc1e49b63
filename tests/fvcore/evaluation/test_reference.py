"""Our evaluations give what the reference's own gave, on the same draws, under its pristine prompts.

The numbers stand in `reference_eval.json`; `record_reference.py` made them and says how.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fvcore.embedded import EMBEDDED
from fvcore.experiments.evaluation.data import NamedTemplate
from fvcore.formats import read_json, sha256_file
from fvcore.trials.fixed import TemplatePart
from tests.late import RUNNING

if RUNNING:
    from torch import Tensor

    from fvcore.decoding import top_tokens
    from fvcore.experiments.evaluation.compute import Bench
    from fvcore.experiments.evaluation.report import Result
    from fvcore.fast.engines import chosen
    from tests.fvcore.evaluation import worlds
    from tests.fvcore.evaluation.record_reference import (
        COMMIT,
        KEPT,
        LAYER,
        METRICS,
        N_SHOTS,
        RECORDED,
        SEED,
        TEMPLATE,
        golden_vector,
    )


if RUNNING:
    SCORE_OF = dict(zip(METRICS, ("f1", "exact_match", "first_word"), strict=True))
REGIMES = {"zero_shot": (0, "clean"), "clean": (10, "clean"), "shuffled": (10, "shuffled")}


@pytest.fixture(params=EMBEDDED, scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read_json(RECORDED)[name]
    return found


@pytest.fixture(params=["fast", "exact"], scope="module")
def bench(name: str, request: pytest.FixtureRequest) -> Bench:
    made = worlds.bench(name, SEED, reference_profile="todd_upstream", engine=request.param)
    assert chosen(made.lm, made.asked.engine) == request.param
    return made


def fv(name: str) -> dict[str, Tensor]:
    return {"fv": golden_vector(name)}


def assert_same(found: list[Result], expected: dict[str, Any]) -> None:
    base, injected = found
    for result, kind in ((base, "clean"), (injected, "intervention")):
        assert result.ranks == expected[f"{kind}_rank_list"]
        assert [result.summary[f"top{k}"] for k in (1, 2, 3)] == [share for _, share in expected[f"{kind}_topk"]]


def test_the_recording_says_where_it_comes_from() -> None:
    provenance = read_json(RECORDED)["provenance"]

    assert COMMIT in provenance["reference"]
    assert provenance["dataset_sha256"] == sha256_file(worlds.DATASET)
    assert provenance["seed"] == SEED


def test_the_recording_can_tell_draws_apart(recorded: dict[str, Any]) -> None:
    every, kept = recorded["all/shuffled"]["clean_rank_list"], recorded["kept/shuffled"]["clean_rank_list"]

    assert len(set(every)) > 2
    assert [every[i] for i in KEPT] != kept  # a question has other demonstrations under a filter


@pytest.mark.parametrize("n_shots", [0, 1, 5, 10])
def test_baseline(bench: Bench, recorded: dict[str, Any], n_shots: int) -> None:
    (found,) = worlds.asking(bench, nll=True).ask(n_shots, "clean")
    expected = recorded[f"baseline/{n_shots}"]

    assert found.ranks == expected["clean_rank_list"]
    assert found.summary["ppl"] == pytest.approx(expected["clean_ppl"], rel=1e-5)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("filtered", ["all", "kept"])
def test_with_and_without_the_vector(
    bench: Bench, name: str, recorded: dict[str, Any], filtered: str, regime: str
) -> None:
    n_shots, labels = REGIMES[regime]
    kept = KEPT if filtered == "kept" else None

    assert_same(bench.ask(n_shots, labels, kept, fv(name), [LAYER]), recorded[f"{filtered}/{regime}"])  # type: ignore[arg-type]


@pytest.mark.parametrize("regime", ["zero_shot", "shuffled"])
def test_over_layers(bench: Bench, name: str, recorded: dict[str, Any], regime: str) -> None:
    n_shots, labels = REGIMES[regime]
    base, *injected = bench.ask(n_shots, labels, None, fv(name), range(bench.lm.n_layers))  # type: ignore[arg-type]

    assert len(injected) == bench.lm.n_layers
    for result in injected:
        assert_same([base, result], recorded[f"layers/{regime}/{result.layer}"])


def test_under_another_template(bench: Bench, name: str, recorded: dict[str, Any]) -> None:
    template = NamedTemplate(
        name="X:/Y:", **{part: TemplatePart(**TEMPLATE[part]) for part in ("prefixes", "separators")}
    )
    other = replace(bench, template=template)

    assert other.ask(N_SHOTS, "clean")[0].ranks == recorded["template/baseline"]["clean_rank_list"]
    assert_same(other.ask(0, "clean", None, fv(name), [LAYER]), recorded["template/zero_shot"])
    assert_same(other.ask(N_SHOTS, "shuffled", None, fv(name), [LAYER]), recorded["template/shuffled"])


@pytest.mark.parametrize("regime", ["zero_shot", "clean"])
def test_generated_answers(name: str, recorded: dict[str, Any], regime: str) -> None:
    n_shots, labels = REGIMES[regime]
    bench = worlds.bench(name, SEED, reference_profile="todd_upstream", generate=True)
    found = bench.ask(n_shots, labels, None, fv(name), [LAYER])  # type: ignore[arg-type]

    for result, kind in zip(found, ("clean", "intervention"), strict=True):
        assert result.generated is not None
        for metric, score in SCORE_OF.items():
            expected = recorded[f"generated/{metric}/{regime}"][f"{kind}_score"]
            assert getattr(result.generated, score) == pytest.approx([float(value) for value in expected])


def test_tokens_of_the_vector() -> None:
    expected = read_json(RECORDED)["tiny-llama"]["tokens"]
    found = top_tokens(worlds.model("tiny-llama"), golden_vector("tiny-llama"), len(expected))

    assert [token["text"] for token in found] == [text for text, _ in expected]
    assert [round(token["probability"], 4) for token in found] == [probability for _, probability in expected]
