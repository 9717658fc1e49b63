"""How small a fault is caught: at the share that the page names, and each of those that hid under a wider bound."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    from fvcore import effects
    from fvcore.compare import compare
    from fvcore.injection import inject_nll
    from fvcore.model.hooks import add_to_residual
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.parity.checks import ParityRun
    from pytest_fvparity.parity.implementation import CHECK_KEYS
    from pytest_fvparity.selftest import sensitivity
    from pytest_fvparity.selftest.alarms import shipped_rigs
    from pytest_fvparity.selftest.faults.effects import without_tokens
    from pytest_fvparity.selftest.rig import Rig

ROOT = Path(__file__).parents[2]
MODELS = ["tiny-llama", "tiny-gpt2"]


@pytest.fixture(scope="module")
def rigs() -> dict[str, Rig]:
    """The shipped models on their goldens of profile src."""
    return {rig.lm.name: rig for rig in shipped_rigs() if rig.settings.reference_profile == "src"}


def run_of(rig: Rig) -> ParityRun:
    return rig.run(rig.candidate())


def changed(artifact: Any, name: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """An artifact whose leaves of that name are others."""
    return {leaf: change(value) if leaf.rpartition("/")[2] == name else value for leaf, value in artifact.items()}


def test_the_page_is_what_is_measured(rigs: dict[str, Rig]) -> None:
    rows = [row for model in ("tiny-gpt2", "tiny-llama") for row in sensitivity.rows_of(rigs[model])]

    assert (ROOT / "docs" / "sensitivity.md").read_text() == sensitivity.page(rows)


@pytest.mark.parametrize("model", slow_but(["tiny-llama"], MODELS))
def test_a_fault_is_caught_from_the_share_that_the_page_names(rigs: dict[str, Rig], model: str) -> None:
    """One part of a leaf alone is scaled, to either side of that share."""
    rig = rigs[model]
    run = run_of(rig)
    for row in sensitivity.rows_of(rig):
        expected = rig.artifacts[row.key]
        for off, caught in ((1.05, True), (0.95, False)):

            def scaled(value: Any, row: Any = row, off: float = off) -> Any:
                if isinstance(value, float):
                    weakest = abs(abs(value) - row.weakest) <= 1e-9
                    return value * (1 + off * row.caught) if weakest else value
                size = value.abs().double() if row.leaf not in sensitivity.ROWS else value.double().norm(dim=-1)
                size = size.norm() if row.leaf.endswith("logits") else size
                where = (size - row.weakest).abs() <= 1e-6 * row.weakest
                where = where[..., None] if row.leaf in sensitivity.ROWS else where
                return (value.double() * (1 + off * row.caught * where)).to(value.dtype)

            verdict = compare(expected, changed(expected, row.leaf, scaled), run.tolerances.of(row.key))
            assert verdict.passed != caught, (row, off)


def weakest_head_off(rig: Rig) -> dict[str, Any]:
    """Both effects of the weakest head are 4 % too large."""
    heads = dict(rig.artifacts["top_heads"])
    aie: Any = heads["aie"].clone()
    at = divmod(int(aie.abs().argmin()), aie.shape[1])
    cie: Any = heads["cie"].clone()
    aie[at] *= 1.04
    cie[:, at[0], at[1]] *= 1.04
    return heads | {"aie": aie, "cie": cie}


HIDDEN: dict[str, tuple[str, Callable[[Any], dict[str, Any]]]] = {
    "effects of the weakest head": ("top_heads", weakest_head_off),
    "effects in four decimals": (
        "top_heads",
        lambda rig: changed(rig.artifacts["top_heads"], "cie", lambda x: x.double().round(decimals=4).float()),
    ),
    "small effects as none": (
        "top_heads",
        lambda rig: changed(rig.artifacts["top_heads"], "cie", lambda x: x.where(x.abs() >= 5e-5, 0)),
    ),
    "a term of the weakest head": (
        "fv_vector",
        lambda rig: changed(rig.artifacts["fv_vector"], "head_terms", lambda x: x * (1 + 3e-3 * weakest_row(x))),
    ),
    "terms through fp16": (
        "fv_vector",
        lambda rig: changed(rig.artifacts["fv_vector"], "head_terms", lambda x: x.half().float()),
    ),
    "a likelihood 1 % off": (
        "injection_output",
        lambda rig: changed(rig.artifacts["injection_output"], "with_nll", lambda x: x * 1.01),
    ),
}


def weakest_row(x: Any) -> Any:
    size = x.norm(dim=-1, keepdim=True)
    return size == size.min()


@pytest.mark.parametrize("model", slow_but(["tiny-llama"], MODELS))
@pytest.mark.parametrize("name", HIDDEN)
def test_what_hid_under_a_wider_bound_is_red_at_its_key(rigs: dict[str, Rig], model: str, name: str) -> None:
    key, fault = HIDDEN[name]
    rig = rigs[model]

    assert not run_of(rig).compare(key, fault(rig)).passed
    assert run_of(rig).compare(key, rig.artifacts[key]).passed


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_a_softmax_without_four_tokens_is_red(
    rigs: dict[str, Rig], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs[model]
    given = [rig.artifacts[key] for key in CHECK_KEYS[:3]]
    monkeypatch.setattr(effects, "target_probability", without_tokens)

    assert not run_of(rig).compare("top_heads", Pipeline(rig.lm, rig.trials, rig.settings).top_heads(*given)).passed


@pytest.mark.parametrize("model", slow_but(["tiny-llama"], MODELS))
def test_a_likelihood_with_the_vector_on_the_answers_tokens_is_red(
    rigs: dict[str, Rig], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = rigs[model]
    monkeypatch.setattr(
        inject_nll.__module__ + ".add_to_residual",
        lambda lm, layer, vector, token=-1: add_to_residual(
            lm, layer, vector, slice(token, None) if token < -1 else token
        ),
    )
    found = rig.candidate().injection_output(rig.artifacts["prompt_boundary"], rig.artifacts["fv_vector"])
    verdict = run_of(rig).compare("injection_output", found)

    assert not verdict.passed
    assert {finding.where.rpartition("/")[2] for finding in verdict.findings if finding.blocking} == {"with_nll"}


def test_no_bound_is_ten_times_what_legal_variations_were_seen_to_differ_by() -> None:
    """Of the table in docs/alarms.md, which is measured over families, kernels, threads and another machine's goldens."""
    rows = re.findall(
        r"^\| `(\w+ \w+)` \| ([\d.]+) \| ([\d.]+) \|", (ROOT / "docs" / "alarms.md").read_text(), re.MULTILINE
    )

    assert {leaf.split()[0] for leaf, *_ in rows} == {"mean_activations", "top_heads", "fv_vector", "injection_output"}
    assert {leaf: times for leaf, _, times in rows if float(times) > 10} == {}
