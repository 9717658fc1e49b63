"""Candidates of any make: a factory, another interpreter, a folder of artifacts; whole or in part."""

from __future__ import annotations

import inspect
import json
import shutil
import sys
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore.trials import fixed as trials
from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    import torch

    from fvcore import artifacts, pipeline
    from fvcore.model import model as models
    from tests.pytest_fvparity.worlds import SETTINGS, World, reports, statuses


FACTORY = """
from fvcore.pipeline import Pipeline

class Mine(Pipeline):
    def fv_vector(self, means, heads):
        leaves = dict(super().fv_vector(means, heads))
        leaves["function_vector"] = leaves["function_vector"] * SCALE
        return leaves

def make(lm, trials, settings):
    return Mine(lm, trials, settings)
"""

# It is handed paths and settings alone, as in an interpreter that has never heard of this project.
ELSEWHERE = """
import os, subprocess, sys, time
from pathlib import Path
from fvcore.model import model as models
from fvcore.trials import fixed as trials
from fvcore.pipeline import Pipeline, Settings

class Mine(Pipeline):
    def slot_map(self, prompts):
        print("chatter on the output stream")
        os.write(1, b'{"number": 2, "artifact": "elsewhere"}\\n')
        print('{"number": 3}', file=sys.__stdout__, flush=True)
        subprocess.run(["echo", "chatter of a child"])
        assert not sys.stdin.read()
        return super().slot_map(prompts)

def make(job):
    lm = models.load(job["model_dir"], job["device"], job["dtype"])
    return Mine(lm, trials.read(Path(job["trials"])), Settings(**job["settings"]))
"""

# It needs no torch, which takes seconds to import.
FAULTY = """
import json, os
from pathlib import Path

class Mine:
    def __init__(self, job):
        pass

    def prompt_boundary(self):
        return json.loads(Path(PROMPTS).read_text())

    def slot_map(self, prompts):
        FAULT
"""

ONE_KEY = """
class Mine:
    def __init__(self, job):
        self.job = job

    def prompt_boundary(self):
        import numpy
        return {"0:0/target_id": -1, "ids": numpy.arange(3)}
"""


EDITS = """
class Edits:
    def fv_vector(self, mean_activations, top_heads):
        top_heads["heads"].pop()
        return {"norm": 1.0}

def make(job):
    return Edits()
"""


@pytest.fixture
def computed(world: World, tmp_path: Path) -> Path:
    """A folder with all six artifacts, as engine `exact` computes them."""
    lm = models.load(str(world.model))
    for key, artifact in pipeline.run(lm, trials.read(world.trials[0]), SETTINGS).items():
        artifacts.save(artifact, tmp_path / key)
    return tmp_path


def judged(pytester: pytest.Pytester, world: World, *words: str) -> dict[str, str]:
    pytester.runpytest_inprocess("-m", "parity", *world.options, *words)
    (report,) = reports(pytester)
    return statuses(report)


def written(pytester: pytest.Pytester) -> dict[str, tuple[str, int | None]]:
    """Where the report says that each key's answer comes from."""
    (report,) = reports(pytester)
    return {one["key"]: (one["source"]["file"], one["source"]["line"]) for one in report["checks"] if one["source"]}


# ---------------------------------------------------------------- a factory


def test_a_factory_beside_the_tests_is_the_candidate(
    pytester: pytest.Pytester, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name, scale, status in (("sound", 1, "PASS"), ("doubled", 2, "FAIL")):
        (pytester.path / f"{name}.py").write_text(FACTORY.replace("SCALE", str(scale)))
        assert judged(pytester, world, f"--fv-candidate={name}:make")["fv_vector"] == status
        # The method that was written, and the class of those it inherits.
        assert written(pytester) == {key: (f"{name}.py", 5 if key == "fv_vector" else 4) for key in CHECK_KEYS}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:make", "No module named 'nowhere'"),
        ("json:nothing", "has no attribute 'nothing'"),
    ],
)
def test_a_factory_that_is_not_there_is_named(pytester: pytest.Pytester, world: World, name: str, message: str) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, f"--fv-candidate={name}")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"*ERROR: nothing could be judged*{message}*"])


def test_what_is_no_name_of_a_factory_is_refused(pytester: pytest.Pytester, world: World) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, "--fv-candidate=json")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*expected package.module:factory, found 'json'*"])


FORGETS = {
    "a factory": ("mine.py", "def make(lm, trials, settings):\n    object()", ["--fv-candidate=mine:make"]),
    "a factory elsewhere": (
        "mine.py",
        "def make(job):\n    object()",
        ["--fv-candidate=mine:make", f"--fv-candidate-python={sys.executable}"],
    ),
    "a hook": ("conftest.py", "def pytest_fvparity_candidate(lm, trials, settings):\n    object()", []),
    "a fixture": ("conftest.py", "import pytest\n@pytest.fixture\ndef fv_candidate(fv_model):\n    object()", []),
}


@pytest.mark.parametrize("who", FORGETS)
def test_whoever_forgets_to_return_the_candidate_has_not_fvcore_judged_in_its_place(
    pytester: pytest.Pytester, world: World, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    name, text, words = FORGETS[who]
    (pytester.path / name).write_text(text)

    result = pytester.runpytest_inprocess("-m", "parity", *world.options, *words)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert list(statuses(report).values()) == ["ERROR", *["BLOCKED"] * 5]
    assert "returned None; expected the candidate" in report["headline"]


def test_that_no_candidate_was_given_stands_in_the_first_line(pytester: pytest.Pytester, world: World) -> None:
    said = "no candidate given: fvcore judged against the reference"

    result = pytester.runpytest_inprocess("-m", "parity", *world.options)
    (report,) = reports(pytester)
    assert report["headline"].endswith(said)
    result.stdout.fnmatch_lines([f"PASS: all 6 check keys agree*; {said}"])

    pytester.makeconftest(f"{FACTORY.replace('SCALE', '1')}\npytest_fvparity_candidate = make")
    pytester.runpytest_inprocess("-m", "parity", *world.options)
    (report,) = reports(pytester)
    assert report["headline"].startswith("PASS: ")
    assert "no candidate" not in report["headline"]


def test_plain_argmax_is_right_whatever_generation_settings_a_model_ships_with(
    pytester: pytest.Pytester, world: World, tmp_path: Path
) -> None:
    """Also for a golden that was recorded from the same weights without them."""
    folder = shutil.copytree(world.model, tmp_path / world.model.name)
    settings = json.loads((folder / "generation_config.json").read_text())
    shipped = {"repetition_penalty": 1.5, "do_sample": True, "no_repeat_ngram_size": 1, "_from_model_config": False}
    (folder / "generation_config.json").write_text(json.dumps(settings | shipped))
    words = [f"--fv-model={folder}", *world.trial_options, f"--fv-golden={world.golden}"]

    for more in ([], ["--fv-candidate=pytest_fvparity.candidates.adapters.torch_hooks:make"]):
        pytester.runpytest_inprocess("-m", "parity", *words, *more).assert_outcomes(passed=6)
        (report,) = reports(pytester)
        assert "repetition_penalty 1.5" in report["conditions"]["generation_config"][1]


@pytest.mark.parametrize(
    "words", [["--fv-candidate-python=python"], ["--fv-candidate=a:b", "--fv-candidate-dir=."], ["--fv-isolate"]]
)
def test_options_that_do_not_fit_together_are_refused(pytester: pytest.Pytester, words: list[str]) -> None:
    result = pytester.runpytest_inprocess(*words)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--fv-candidate*"])


class Bound:
    def slot_map(self) -> None: ...


def other(_: Any) -> None: ...


@pytest.mark.parametrize(
    ("candidate", "line"),
    [
        (Bound(), inspect.getsourcelines(Bound.slot_map)[1]),
        (SimpleNamespace(slot_map=partial(other, 1)), inspect.getsourcelines(other)[1]),
        (SimpleNamespace(slot_map=staticmethod(wraps(other)(lambda: None))), inspect.getsourcelines(other)[1]),
        (SimpleNamespace(slot_map=len), None),
        (SimpleNamespace(), None),
    ],
)
def test_a_method_is_found_whatever_it_is_wrapped_in(candidate: Any, line: int | None) -> None:
    from pytest_fvparity.candidates.whereabouts import whereabouts

    here = Path(__file__)
    found = whereabouts(candidate, here.parent, lambda path: path.name)

    assert found == ({"slot_map": {"file": here.name, "line": line}} if line else {})


@pytest.mark.parametrize("said", [{"slot_map": 1}, {"slot_map": [["a"], ["\0", 1], ["a", "1"], ["a", -1]]}])
def test_what_a_process_says_of_its_files_is_not_believed_blindly(said: dict[str, Any]) -> None:
    from pytest_fvparity.candidates.candidates import Elsewhere
    from pytest_fvparity.candidates.whereabouts import whereabouts

    candidate = Elsewhere.__new__(Elsewhere)
    candidate.written = said

    assert whereabouts(candidate, Path(), str) == {}


# ---------------------------------------------------------------- another interpreter


def elsewhere(pytester: pytest.Pytester, world: World, text: str, factory: str = "make") -> pytest.RunResult:
    (pytester.path / "mine.py").write_text(text)
    words = [f"--fv-candidate=mine:{factory}", f"--fv-candidate-python={sys.executable}", "--fv-candidate-timeout=60"]
    return pytester.runpytest_inprocess("-m", "parity", *world.options, *words)


def test_a_candidate_in_another_interpreter_says_the_same(pytester: pytest.Pytester, world: World) -> None:
    elsewhere(pytester, world, ELSEWHERE).assert_outcomes(passed=6)

    (report,) = reports(pytester)
    assert {check["max_abs_diff"] for check in report["checks"]} <= {0.0, None}
    assert written(pytester) == {key: ("mine.py", 9 if key == "slot_map" else 8) for key in CHECK_KEYS}


@pytest.mark.parametrize(
    ("fault", "message"),
    [("raise ValueError('over there')", "over there"), ("os._exit(3)", "ended its process (exit status 3)")],
)
def test_what_happens_to_it_over_there_is_told_here(
    pytester: pytest.Pytester, world: World, fault: str, message: str
) -> None:
    (prompts,) = world.golden.rglob("prompt_boundary.json")
    result = elsewhere(pytester, world, FAULTY.replace("PROMPTS", repr(str(prompts))).replace("FAULT", fault), "Mine")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert list(statuses(report).values())[:3] == ["PASS", "ERROR", "BLOCKED"]
    assert message in report["headline"]


ISOLATED = """
import os
from fvcore.pipeline import Pipeline

class Mine(Pipeline):
    def top_heads(self, *inputs):
        FAULT
        return super().top_heads(*inputs)

def make(lm, trials, settings):
    return Mine(lm, trials, settings)
"""


ENDED = "candidate mine:make ended its process (exit status 0)"
ENDS = [
    ("pass", "PASS", "PASS: all 6 check keys agree"),
    ("os._exit(0)", "ERROR", ENDED),
    ("import ctypes; ctypes.CDLL(None).exit(0)", "ERROR", ENDED),
]


@pytest.mark.parametrize(("fault", "status", "said"), slow_but(ENDS[1:2], ENDS))
def test_an_isolated_candidate_is_handed_the_same_and_ends_itself_alone(
    pytester: pytest.Pytester, world: World, fault: str, status: str, said: str
) -> None:
    (pytester.path / "mine.py").write_text(ISOLATED.replace("FAULT", fault))

    result = pytester.runpytest_inprocess("-m", "parity", *world.options, "--fv-candidate=mine:make", "--fv-isolate")

    (report,) = reports(pytester)
    assert (statuses(report)["top_heads"], said in report["headline"]) == (status, True)
    assert result.ret == (0 if status == "PASS" else 1)
    assert "--fv-isolate" in report["checks"][0]["repro_command"]


ECHO = "import itertools, json, sys\nfor line in itertools.chain([0], sys.stdin):\n    n = json.loads(line)['number'] if line else 0\n"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("print('a banner')", "which is not answer 0: 'a banner"),
        ("print(json.dumps({'number': 7}))", 'which is not answer 0: \'{"number": 7}'),
        ("print(json.dumps({'number': 0}))", 'which is not answer 1: \'{"number": 0}'),
        ("print(json.dumps({'number': n}) if n < 2 else '[' * 99999)", "which is not answer 2: '[[["),
        ("print(json.dumps({'number': n}) if n < 2 else 1 / 0)", "ended its process (exit status 1)"),
        (
            "import time\n    print(json.dumps({'number': 0})) if not n else time.sleep(60)",
            "gave no answer in 2 s (--fv-candidate-timeout)",
        ),
    ],
)
def test_a_line_that_is_no_answer_ends_the_conversation(tmp_path: Path, said: str, message: str) -> None:
    """Nothing that comes later is taken for an answer, and nothing is waited for."""
    from pytest_fvparity.candidates.conversation import CandidateError, Conversation

    (tmp_path / "other.py").write_text(f"{ECHO}    {said}\n    sys.stdout.flush()\n")
    talk = Conversation("mine", [sys.executable, "other.py"], tmp_path, 2 if "sleep" in said else 60)

    with pytest.raises(CandidateError) as ended:
        [talk.answer(), talk.ask({}), talk.ask({})]
    with pytest.raises(CandidateError) as again:
        talk.ask({})

    assert message in str(ended.value)
    assert str(again.value) == str(ended.value)
    talk.close()


def test_an_input_that_is_edited_over_there_is_an_error(pytester: pytest.Pytester, world: World) -> None:
    elsewhere(pytester, world, EDITS)

    (report,) = reports(pytester)
    assert statuses(report)["fv_vector"] == "ERROR"
    assert (
        "while it was asked for fv_vector it changed what it was handed, at 'heads'; copy it first"
        in report["headline"]
    )


def test_a_factory_that_fails_over_there_is_an_error(pytester: pytest.Pytester, world: World) -> None:
    elsewhere(pytester, world, "def make(job): raise OSError('no such weights')")

    (report,) = reports(pytester)
    assert "no such weights" in report["headline"]


def test_it_may_provide_a_single_key_and_needs_none_of_our_packages(pytester: pytest.Pytester, world: World) -> None:
    elsewhere(pytester, world, ONE_KEY, "Mine")

    (report,) = reports(pytester)
    assert statuses(report)["prompt_boundary"] == "FAIL"
    wheres = {row["where"]: row["message"] for row in report["checks"][0]["details"]}
    assert wheres["0:0/target_id"] == "differs"
    assert wheres["ids"] == "not in the golden"


# ---------------------------------------------------------------- a folder


def test_computed_artifacts_are_judged(pytester: pytest.Pytester, world: World, computed: Path) -> None:
    found = judged(pytester, world, f"--fv-candidate-dir={computed}")
    assert written(pytester) == {key: (f"{computed}/{key}.json", None) for key in CHECK_KEYS}

    assert found == dict.fromkeys(CHECK_KEYS, "PASS")


def test_a_key_that_is_left_out_blocks_nothing_and_is_never_green(
    pytester: pytest.Pytester, world: World, computed: Path
) -> None:
    for file in computed.glob("slot_map.*"):
        file.unlink()

    result = pytester.runpytest_inprocess("-m", "parity", *world.options, f"--fv-candidate-dir={computed}")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert statuses(report) == {key: "NOT_PROVIDED" if key == "slot_map" else "PASS" for key in CHECK_KEYS}
    assert report["headline"] == ("NOT_PROVIDED: slot_map cannot be judged; 5 of 6 check keys agree with the reference")


def test_a_fault_behind_a_key_that_is_left_out_comes_first(
    pytester: pytest.Pytester, world: World, computed: Path
) -> None:
    (computed / "prompt_boundary.json").unlink()
    vector = artifacts.load(computed / "fv_vector")
    artifacts.save({**vector, "norm": 0.0}, computed / "fv_vector")

    found = judged(pytester, world, f"--fv-candidate-dir={computed}")

    assert (found["prompt_boundary"], found["fv_vector"]) == ("NOT_PROVIDED", "FAIL")
    (report,) = reports(pytester)
    assert report["first_divergence"]["check_key"] == "fv_vector"


def test_the_plans_file_names_are_read(pytester: pytest.Pytester, world: World, computed: Path) -> None:
    means, heads, vector = (artifacts.load(computed / key) for key in ("mean_activations", "top_heads", "fv_vector"))
    folder = pytester.mkdir("plan")
    torch.save(means["mean_activations"], folder / "mean_activations.pt")
    rows = [{"layer": layer, "head": head, "score_key": "mean_delta_p"} for layer, head in heads["heads"]]  # type: ignore[union-attr, misc]
    (folder / "top_heads.json").write_text(json.dumps({"meta": {}, "heads": rows}))
    torch.save({"fv_global_resid": vector["function_vector"], "resid_dim": 32}, folder / "fv_global_resid.pt")

    found = judged(pytester, world, f"--fv-candidate-dir={folder}")

    # The whole artifact is there for one key, a part of it for two: what is there was compared.
    assert found["mean_activations"] == "PASS"
    assert [key for key, status in found.items() if status == "NOT_PROVIDED"] == [
        key for key in CHECK_KEYS if key != "mean_activations"
    ]
    (report,) = reports(pytester)
    messages = {check["key"]: check["message"] for check in report["checks"]}
    assert messages["top_heads"].endswith("values agree with the reference; not provided: cie, aie, scores")

    torch.save({"fv_global_resid": -vector["function_vector"]}, folder / "fv_global_resid.pt")  # type: ignore[operator]
    assert judged(pytester, world, f"--fv-candidate-dir={folder}")["fv_vector"] == "FAIL"


def test_a_pickle_in_the_folder_is_not_run(pytester: pytest.Pytester, world: World) -> None:
    import pickle

    folder = pytester.mkdir("bad")
    (folder / "mean_activations.pt").write_bytes(pickle.dumps(print))

    result = pytester.runpytest_inprocess("-m", "parity", *world.options, f"--fv-candidate-dir={folder}")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert statuses(report)["mean_activations"] == "ERROR"
    assert "not a file of tensors and plain values" in report["headline"]
