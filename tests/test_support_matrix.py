"""The support matrix says what it ran, what fell back and what failed; and the page that is published is of the whole table."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from fvcore.formats import read_json
from fvcore.model.spec import MODEL_SPECS
from fvcore.provenance import TESTED
from tests.late import RUNNING

if RUNNING:
    import every_type
    import support_matrix
    from support_matrix import FALLS_BACK, NO, OK, OPERATIONS


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))


ABOUT = {
    "out_proj_path": "a.0.o", "out_proj_class": "Linear", "out_proj_bias": False, "n_heads": 4, "head_dim": 8,
    "hidden_size": 32, "block_output": "tensor", "attn_implementation": "sdpa", "norm_after_attention": None,
    "residual_multiplier": 0.5,
}  # fmt: skip


def row(**changed: dict[str, list[str]]) -> dict[str, Any]:
    """A family's row in which everything works but for some cells of some dtypes."""
    dtypes = ("fp32", "fp16", "bf16")
    fine = {operation: [OK, ""] for operation in OPERATIONS}
    return {"about": ABOUT, "cells": {dtype: fine | changed.get(dtype, {}) for dtype in dtypes}}


def line(page: str, family: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(f"| {family} |"))


def test_a_family_is_run_in_every_dtype() -> None:
    found = support_matrix.family_row("gpt_neo")
    assert list(found["cells"]) == ["fp32", "fp16", "bf16"]
    for cells in found["cells"].values():
        assert cells["exact"] == [OK, ""]
        verdict, reason = cells["fast"]
        assert verdict == FALLS_BACK
        assert "logits differ" in reason


def test_numbers_that_are_none_are_not_supported(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = support_matrix.random_lm("llama")
    trials = support_matrix.trials_for(lm, n_trials=1, n_shots=2)
    lm.hf.lm_head.weight.fill_(float("nan"))
    found = support_matrix.cells(lm, trials)
    assert found["record"] == [OK, ""]
    assert found["exact"][0] == found["inject"][0] == found["NLL"][0] == NO
    assert "indirect effects not finite" in found["exact"][1]


def test_a_cell_is_one_word_where_all_dtypes_agree_and_says_why_where_not() -> None:
    half = {"NLL": [NO, "RuntimeError: no kernel"]}
    falls = {"fast": [FALLS_BACK, "layer 1 differs"]}
    types = {"a": every_type.told(every_type.WORKS, paths="m / a / o", d_heads=[8, 8])}
    types["b"] = every_type.told(every_type.BY_EXACT, "no cache", paths="m / a / o", d_heads=[0, 8])
    types["c"] = every_type.told(every_type.REFUSED, "no | ModelSpec")
    page = support_matrix.page(
        {"a": row(), "b": row(fp16=half), "c": row(fp32=falls, fp16=falls, bf16=falls)},
        {"transformers": "5.23.0"},
        ["5.2"],
        types,
    )
    assert "| a | works | `m / a / o` | 8 |  |" in page
    assert "| b | by exact | `m / a / o` | none, 8 | no cache |" in page
    assert "| c | refused |  |  | no / ModelSpec |" in page
    assert "works 1, by exact 1, refused 1." in page
    assert line(page, "a") == "| a | ok | ok | ok | ok | ok | ok |"
    assert "| ok, no [1], ok |" in line(page, "b")
    assert "| exact [2] |" in line(page, "c")
    assert "[1] RuntimeError: no kernel" in page
    assert "[2] layer 1 differs" in page
    assert "factor 0.5" in page


def test_a_family_that_crashes_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(support_matrix, "family_row", lambda family: os._exit(3))
    found = support_matrix.in_process_of_its_own("llama")
    assert found["cells"]["bf16"]["inject"][0] == NO
    assert "crashed, or ran past" in found["cells"]["fp32"]["exact"][1]


def test_what_is_tested_is_what_works_in_fp32_under_every_version_alike() -> None:
    rows = {"a": row(bf16={"fast": [NO, "x"]}), "b": row(fp32={"fast": [NO, "x"]})}
    assert support_matrix.tested_now(rows, "5.23.1", {}) == {"families": ["a"], "transformers": ["5.23"]}
    same = {"families": ["a"], "transformers": ["5.2"]}
    assert support_matrix.tested_now(rows, "5.23.1", same)["transformers"] == ["5.2", "5.23"]
    other = {"families": ["a", "b"], "transformers": ["5.2"]}
    assert support_matrix.tested_now(rows, "5.23.1", other)["transformers"] == ["5.23"]


def test_the_published_page_and_what_reports_know_by_are_of_the_whole_table() -> None:
    page, tested = (ROOT / "docs" / "support.md").read_text(), read_json(TESTED)
    assert set(tested["families"]) == set(MODEL_SPECS)
    of_families, _, of_types = page.partition("## Every causal language model type")
    for family in MODEL_SPECS:
        assert of_families.count(f"| {family} |") == 2
    assert of_types.count("| works |") >= 80
    assert "not run" not in of_types
    assert "| broken |" not in of_types  # whatever is not supported is refused by a sentence
    # One line of the page, wrapped.
    assert f"than {', '.join(tested['transformers'])}, every report says so" in " ".join(page.split())
