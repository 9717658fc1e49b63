"""The shipped adapters agree with the recorded reference, and every block of the candidates' guide does what it says."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fvcore.shipped import FIXED_TRIALS
from tests.pytest_fvparity.worlds import World
from tests.slow import slow_but

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "candidates.md").read_text()
BLOCK = re.compile(
    r'```(?P<kind>python|console|text)(?: with "(?P<old>.+?)" -> "(?P<new>.+?)")?\n(?P<body>.*?)```', re.DOTALL
)
SECTIONS = {text.splitlines()[0]: text for text in GUIDE.split("\n## ")[1:]}
PACKAGES = {"torch_hooks": "torch", "nnsight": "nnsight", "transformer_lens": "transformer_lens"}


@pytest.fixture(autouse=True)
def _as_in_the_checkout(world: World, pytester: pytest.Pytester) -> None:
    """The folder a person types in holds the shipped trials; goldens are found with the package.

    `world` comes first: torch imports a part of itself when it is first used, and must not do so in a run inside a run,
    whose imports are forgotten.
    """
    shutil.copytree(ROOT / FIXED_TRIALS, pytester.path / FIXED_TRIALS)


def words(adapter: str, *options: str) -> list[str]:
    return ["-m", "parity", f"--fv-candidate=pytest_fvparity.candidates.adapters.{adapter}:make", *options]


@pytest.mark.parametrize(
    ("adapter", "model"),
    slow_but(
        [],
        [
            ("torch_hooks", "tiny-llama"),
            ("torch_hooks", "tiny-gpt2"),
            ("nnsight", "tiny-llama"),
            ("transformer_lens", "tiny-llama"),
            ("transformer_lens", "tiny-gpt2"),
        ],
    ),
)
def test_an_adapter_agrees_with_the_reference(pytester: pytest.Pytester, adapter: str, model: str) -> None:
    # Other libraries change torch as they like, in a process of their own.
    run = pytester.runpytest_inprocess if adapter == "torch_hooks" else pytester.runpytest_subprocess
    result = run(*words(adapter, f"--fv-model={model}"))

    if importlib.util.find_spec(PACKAGES[adapter]) is None:
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        extra = adapter.replace("_", "-")
        result.stdout.fnmatch_lines([f"*this adapter needs {extra}: pip install 'pytest-fvparity[[]{extra}]'*"])
        assert "Traceback" not in result.stdout.str()
        return
    result.assert_outcomes(passed=6)


@pytest.mark.parametrize("adapter", ["torch_hooks", "nnsight"])  # transformer_lens has an attention of its own
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_on_the_models_own_modules_an_adapter_is_every_bit_of_exact(adapter: str, family: str) -> None:
    from fvcore.compare import compare
    from fvcore.embedded.random_models import random_lm, trials_for
    from fvcore.pipeline import Settings, run

    pytest.importorskip(PACKAGES[adapter])
    lm = random_lm(family)
    fixed, settings = trials_for(lm, n_trials=2), Settings(edit_layer=0, n_top_heads=3, engine="exact")
    candidate = importlib.import_module(f"pytest_fvparity.candidates.adapters.{adapter}").make(lm, fixed, settings)
    want = run(lm, fixed, settings)
    words = [want["prompt_boundary"], want["slot_map"]]
    given = {
        "mean_activations": words,
        "top_heads": [*words, want["mean_activations"]],
        "fv_vector": [want["mean_activations"], want["top_heads"]],
        "injection_output": [words[0], want["fv_vector"]],
    }

    for key, earlier in given.items():
        assert compare(want[key], getattr(candidate, key)(*earlier)).findings == (), key


@pytest.mark.parametrize("family", ["gptj", "gpt_neox", "qwen3"])
def test_plain_hooks_agree_on_other_families(pytester: pytest.Pytester, tmp_path: Path, family: str) -> None:
    from tests.pytest_fvparity.worlds import make_world

    options = make_world(tmp_path, family).options
    pytester.runpytest_inprocess(*words("torch_hooks", *options)).assert_outcomes(passed=6)


def test_plain_hooks_agree_in_every_token_class(world: World) -> None:
    import dataclasses

    from fvcore import pipeline
    from fvcore.compare import Tolerance, compare
    from fvcore.model.model import load
    from fvcore.trials import fixed as trials
    from pytest_fvparity.candidates.adapters.torch_hooks import make
    from tests.pytest_fvparity.worlds import SETTINGS

    lm, fixed = load(str(world.model)), trials.read(world.trials[0])
    settings = dataclasses.replace(SETTINGS, token_class_idx=2, engine="exact")
    want = pipeline.run(lm, fixed, settings)
    have = make(lm, fixed, settings).top_heads(*(want[k] for k in ("prompt_boundary", "slot_map", "mean_activations")))

    assert compare(want["top_heads"], have, Tolerance(atol=1e-6)).passed


def test_no_hook_is_left_on_the_sessions_model(world: World) -> None:
    from fvcore.model.hooks import hooks_left
    from fvcore.model.model import load
    from fvcore.trials import fixed as trials
    from pytest_fvparity.candidates.adapters.torch_hooks import TorchHooks
    from tests.pytest_fvparity.worlds import SETTINGS

    lm, fixed = load(str(world.model)), trials.read(world.trials[0])
    with hooks_left(lm.hf) as left:
        found = TorchHooks(lm, fixed, SETTINGS)
        prompts = found.prompt_boundary()
        found.mean_activations(prompts, found.slot_map(prompts))

    assert left == []


@pytest.mark.parametrize("section", slow_but(["In conftest.py"], SECTIONS))
def test_the_guide_does_what_it_says(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, section: str) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # code is changed within a second
    commands: list[str] = []
    output, n_said = "", 0
    for block in BLOCK.finditer(SECTIONS[section]):
        body = block["body"]
        if block["kind"] == "python":
            name = body.splitlines()[0].removeprefix("# ")
            pytester.makefile(".py", **{name.removesuffix(".py"): body})
        elif block["kind"] == "console":
            commands = body.splitlines()
            output = run(pytester, commands)
        else:
            if block["old"]:
                swap(pytester.path, block["old"], block["new"])
                output = run(pytester, commands)
            pytest.LineMatcher(output.splitlines()).fnmatch_lines(body.splitlines())
            n_said += 1

    assert n_said >= 1


def swap(folder: Path, old: str, new: str) -> None:
    """Change one line of the section's code."""
    (file,) = (path for path in folder.glob("*.py") if old in path.read_text())
    file.write_text(file.read_text().replace(old, new))


def run(pytester: pytest.Pytester, commands: list[str]) -> str:
    """What a section's commands print. All but pytest run in a process of its own, as a person's would."""
    printed = ""
    for command in commands:
        typed = [re.sub("(^|=)python$", rf"\g<1>{sys.executable}", word) for word in shlex.split(command)]
        if typed[0] == "pytest":
            result = pytester.runpytest_inprocess(*typed[1:])
            assert result.ret in {0, 1}, result.stdout.str() + result.stderr.str()
            printed += result.stdout.str()
            continue
        done = subprocess.run(typed, cwd=pytester.path, capture_output=True, text=True, check=False)
        assert done.returncode in {0, 1}, done.stdout + done.stderr
        printed += done.stdout
    return printed
