"""The examples answer their questions in an empty folder, and what each says of its bug holds."""

from __future__ import annotations

import re
import runpy
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.slow import slow_but

if TYPE_CHECKING:
    from pytest_fvparity.selftest.rig import Rig

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
FILES = {path.stem: path for path in sorted(EXAMPLES.glob("*.py"))}
BUG = re.compile(r"^( *)# (.*)(  # a bug to try: .*)\n *# fvparity: (\w+) at (\w+), (\S+)$", re.MULTILINE)

# What each printed: how many are right, line by line, or the text itself.
ANSWERS: dict[str, Callable[[list[int], str], Any]] = {
    "knows_task": lambda right, _: right[0] <= 2 and min(right[2:]) >= 8,
    "which_heads": lambda _, said: "layer 2, head 3: " in said.splitlines()[0] and said.endswith(" 0.0 points\n"),
    "any_heads": lambda right, _: right[0] <= 1 and right[1] >= right[2] + 3,
    "every_layer": lambda right, _: max(right[1:4]) >= right[0] + 5 and right[-1] <= 2,
    "steer": lambda _, said: "hot: opaque; with the vector cold" in said,
    "add_vectors": lambda right, _: right[0] > right[1] + 3 and right[5] > right[4] + 5,
    "same_vector": lambda _, said: "values agree" in said,
    "two_models": lambda right, _: right[1] >= 5 and right[3] >= 8,
}


@cache
def rig() -> Rig:
    """The shipped model on three trials, with what the method says of them."""
    import fvcore
    from fvcore.embedded.words import antonym
    from pytest_fvparity.selftest.rig import Rig

    lm = fvcore.load("tiny-llama")
    trials = fvcore.make_trials(lm, antonym().items(), n_trials=3, n_shots=4)
    return Rig.recorded(lm, trials, fvcore.Settings(edit_layer=1, n_top_heads=4))


def judged(text: str, name: str) -> list[Any]:
    """What the six checks say of an example's candidate."""
    names: dict[str, Any] = {"__name__": name}
    exec(compile(text, f"{name}.py", "exec"), names)
    return rig().judge(names["Mine"](rig().lm, rig().trials, rig().settings))


@pytest.mark.parametrize("name", FILES)
def test_an_example_answers_its_question(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runpy.run_path(str(FILES[name]), run_name="__main__")

    said = capsys.readouterr().out
    assert ANSWERS[name]([int(n) for n in re.findall(r"(\d+) of \d+ right", said)], said), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", slow_but(["which_heads"], FILES))
def test_an_example_agrees_until_its_bug_is_tried(name: str) -> None:
    text = FILES[name].read_text()
    (bug,) = BUG.finditer(text)
    space, code, _, status, key, leaf = bug.groups()

    assert {str(result.status) for result in judged(text, name)} == {"PASS"}
    results = judged(text.replace(bug[0], f"{space}{code}"), name)
    (found,) = (result for result in results if result.status not in {"PASS", "BLOCKED"})
    assert (found.status, found.key) == (status, key), found.message
    assert found.verdict.first_mismatch.where.startswith(leaf), found.verdict.first_mismatch


def test_the_page_has_every_example_with_its_question_and_where_its_bug_is_found() -> None:
    rows = re.findall(
        r"^\| (.+?) \| \[(\w+)\.py\]\(\2\.py\) \| .+ \| `(\w+)` \|$", (EXAMPLES / "README.md").read_text(), re.MULTILINE
    )
    told = {name: (question, key) for question, name, key in rows}
    found = {name: BUG.search(path.read_text())[5] for name, path in FILES.items()}

    assert {name: key for name, (_, key) in told.items()} == found
    for name, (question, _) in told.items():
        assert FILES[name].read_text().startswith(f'"""{question}'), name
