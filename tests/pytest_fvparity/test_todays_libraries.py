"""A user's project may make errors of warnings, and its libraries may be newer than any that the project was run with."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from tests.late import RUNNING

if TYPE_CHECKING:
    from tests.pytest_fvparity.worlds import World

if RUNNING:
    from fvcore.model import model as models


def test_warnings_as_errors_kill_nothing_and_what_is_untested_is_a_condition(
    pytester: pytest.Pytester, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    monkeypatch.setattr(models, "untested", lambda family, version: {"untested library": ("1.0", "2.0")})

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)

    result.assert_outcomes(passed=6)
    (path,) = pytester.path.glob("reports/**/src_vs_fv_diff_report.json")
    told = f"`fvcore spec engines {world.model}` compares both engines"
    report = json.loads(path.read_text())
    assert report["conditions"]["untested library"] == ["1.0", f"2.0; {told}"]
    assert not any(check["warnings"] for check in report["checks"])
    result.stdout.fnmatch_lines([f"condition untested library: 1.0 -> 2.0; {told}"])
