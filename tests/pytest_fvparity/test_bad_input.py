"""Bad input gets one clear error with the way out, exit code not 0, and no file changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import toy_tokenizer
from fvcore.trials import fixed as trials
from tests.late import RUNNING

if RUNNING:
    from tests.pytest_fvparity.worlds import World, reports, statuses


def _files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _run(pytester: pytest.Pytester, world: World, *words: str) -> pytest.RunResult:
    before = _files(world.golden)
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, *words)
    assert result.ret not in {pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED}
    assert _files(world.golden) == before
    return result


def _copy(pytester: pytest.Pytester, world: World) -> Path:
    """The model's directory in a place of its own, to be damaged."""
    copy = pytester.path / world.model.name
    shutil.copytree(world.model, copy)
    return copy


def _with_trials(pytester: pytest.Pytester, world: World, text: str) -> World:
    path = pytester.path / world.trials[0].name
    path.write_text(text)
    return World(world.model, (path,), world.golden)


@pytest.mark.parametrize(
    ("words", "message", "better"),
    [
        (["--fv-edit-layer=7"], "edit_layer out of range: 7 not in [[]0, 1[]]", "--fv-edit-layer=0"),
        (["--fv-top-heads", "9"], "9 top heads asked for,*ask for 1 to 8", "--fv-top-heads=8"),
        (["--fv-token-class=10"], "10 is not in [[]-1, 9[]]", "--fv-token-class=-1"),
        (["--fv-max-trials=4"], "--fv-max-trials 4:*has 3 trials; ask for 1 to 3", "--fv-max-trials=3"),
    ],
)
def test_a_setting_the_model_cannot_have_is_refused_before_anything_is_collected(
    pytester: pytest.Pytester, world: World, words: list[str], message: str, better: str
) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, *words)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *{message}*`pytest *{better}`"])
    assert not list(pytester.path.glob("reports/**/*.json"))


def test_a_setting_is_not_refused_for_a_model_that_a_fixture_puts_in_the_place(
    pytester: pytest.Pytester, world: World
) -> None:
    pytester.makeconftest("import pytest\n\n\n@pytest.fixture\ndef fv_model():\n    pytest.fail('asked')\n")
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, "--fv-edit-layer=7")
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fv-trials=nowhere.json"], "--fv-trials: no such file: nowhere.json. `fvcore trials make` writes one"),
        (["--fv-max-trials=0"], "--fv-max-trials: at least 1, found 0"),
        (["--fv-device=tpu"], "--fv-device: expected cpu, cuda, cuda:N or auto, found 'tpu'"),
        (["--fv-require-gpu", "--fv-device=cpu"], "--fv-require-gpu contradicts --fv-device cpu"),
        (
            ["--fv-model=models/ours"],
            "--fv-model: no model *there is no directory */models/ours, *hf download models/ours*",
        ),
        (["--fv-golden=nowhere"], "--fv-golden: no such folder: */nowhere"),
        (["--fv-tolerances=none.yaml"], "--fv-tolerances: no such file: */none.yaml"),
        (["--fv-src-python=nowhere/python"], "--fv-src-python: no interpreter */nowhere/python"),
        (["--fv-candidate=module"], "--fv-candidate: expected package.module:factory, found 'module'"),
        (
            ["--fv-max-memory=8"],
            "--fv-max-memory or ini fv_max_memory: expected an amount with its unit*8GiB, found '8'",
        ),
        (["--fv-live"], "--fv-live needs a checkout of the reference: get one with*git clone*"),
    ],
)
def test_a_wrong_command_line_is_refused_before_anything_runs(
    pytester: pytest.Pytester, world: World, words: list[str], message: str
) -> None:
    result = _run(pytester, world, *words)

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*{message}*"])


def test_a_path_that_moves_the_root_folder_is_to_be_written_with_an_equals_sign(
    pytester: pytest.Pytester, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "my models"
    elsewhere.mkdir()

    result = pytester.runpytest_inprocess("-m", "parity", "--fv-model", str(elsewhere))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"ERROR: *Write it with `=`: `pytest *'--fv-model={elsewhere}'`"])


def test_another_model_without_trials_is_shown_how_to_make_some(pytester: pytest.Pytester, world: World) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", f"--fv-model={world.model}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*is no shipped model, so --fv-trials is needed*fvcore trials make*"])


def _drop_key(value: Any) -> Any:
    del value["trials"][2]["target_str"]
    return value


def _truncate(value: Any) -> Any:
    value["trials"].pop()
    return value


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: text[: len(text) // 2], "not valid JSON (line"),
        (lambda text: json.dumps(_drop_key(json.loads(text))), "trial 2: missing key 'target_str'"),
        (
            lambda text: json.dumps(_truncate(json.loads(text))),
            "holds 2 trials, meta.n_trials says 3; is the file truncated?",
        ),
        (lambda text: "[]", "holds no trials"),
        (lambda text: '"words"', "the top level"),
    ],
)
def test_a_damaged_trials_file_is_named_with_the_place(
    pytester: pytest.Pytester, world: World, damage: Callable[[str], str], message: str
) -> None:
    damaged = _with_trials(pytester, world, damage(world.trials[0].read_text()))

    result = _run(pytester, damaged)

    result.stdout.fnmatch_lines([f"*{message}*"])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("gpt2", "the tokenizer adds no BOS (ids of 'Q: a': *but the trials say model_prepend_bos = true*trials make*"),
        ("eos", "the tokenizer appends its end-of-text token*"),
    ],
)
def test_a_tokenizer_that_disagrees_about_bos_or_eos_is_one_clear_error(
    pytester: pytest.Pytester, world: World, kind: str, message: str
) -> None:
    copy = _copy(pytester, world)
    toy_tokenizer(kind).save_pretrained(copy)

    result = _run(pytester, World(copy, world.trials, world.golden))

    result.stdout.fnmatch_lines([f"*{message}*"])
    assert "Traceback" not in result.stdout.str()


def test_a_tokenizer_that_adds_bos_where_none_is_expected_is_one_clear_error(
    pytester: pytest.Pytester, world: World
) -> None:
    fixed = trials.read(world.trials[0])
    meta = fixed.meta.model_copy(update={"model_prepend_bos": False})
    text = trials.text_of(fixed.file.model_copy(update={"meta": meta}))

    result = _run(pytester, _with_trials(pytester, world, text))

    result.stdout.fnmatch_lines(["*the tokenizer adds BOS (ids of*model_prepend_bos = false*"])


def test_another_tokenizer_is_refused_and_the_field_is_named(pytester: pytest.Pytester, world: World) -> None:
    copy = _copy(pytester, world)
    tokenizer = toy_tokenizer("bos")
    tokenizer.add_tokens(["newword"])
    tokenizer.save_pretrained(copy)

    result = _run(pytester, World(copy, world.trials, world.golden))

    result.stdout.fnmatch_lines(["*stale golden, nothing was compared. the tokenizer of * changed*tokenizer_sha*"])
    result.stdout.fnmatch_lines(
        [f"*record again: *--fv-model={copy.relative_to(pytester.path)} --fv-trials={world.trials[0]} *"]
    )
    (report,) = reports(pytester)
    assert statuses(report)["prompt_boundary"] == "STALE_GOLDEN"


def test_other_weights_are_refused_and_the_field_is_named(pytester: pytest.Pytester, world: World) -> None:
    from safetensors.torch import load_file, save_file

    copy = _copy(pytester, world)
    weights = load_file(copy / "model.safetensors")
    weights["lm_head.weight"][0, 0] += 1
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})

    result = _run(pytester, World(copy, world.trials, world.golden))

    result.stdout.fnmatch_lines(["STALE_GOLDEN: *weights_sha: golden*this run*"])


def test_a_truncated_model_is_one_clear_error(pytester: pytest.Pytester, world: World) -> None:
    copy = _copy(pytester, world)
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[:1000])

    result = _run(pytester, World(copy, world.trials, world.golden))

    result.stdout.fnmatch_lines(["*cannot load the model of*Expected a shipped model*"])


def test_a_config_without_weights_is_told_of_shrink_before_anything_is_collected(
    pytester: pytest.Pytester, world: World
) -> None:
    copy = _copy(pytester, world)
    (copy / "model.safetensors").unlink()

    result = _run(pytester, World(copy, world.trials, world.golden))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    shrink = f"fvcore spec shrink {copy.name} --out {copy.name}-small --trials {world.trials[0]}"
    result.stderr.fnmatch_lines(
        [f"ERROR: --fv-model: *no weights*`{shrink}`; then `pytest *--fv-model={copy.name}-small`"]
    )


def test_a_model_moved_to_another_folder_is_the_same_model(pytester: pytest.Pytester, world: World) -> None:
    copy = pytester.path / "elsewhere"
    shutil.copytree(world.model, copy)

    result = pytester.runpytest_inprocess("-m", "parity", *World(copy, world.trials, world.golden).options)

    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["condition model: random-llama -> elsewhere"])


def test_a_damaged_golden_is_found_by_its_hash_before_it_is_used(pytester: pytest.Pytester, world: World) -> None:
    copy = pytester.path / "golden"
    shutil.copytree(world.golden, copy)
    (file,) = copy.rglob("top_heads.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(bytes(data))

    result = _run(pytester, World(world.model, world.trials, copy))

    result.stdout.fnmatch_lines(["REFUSED: *top_heads.safetensors: damaged: sha256*--fv-regen-golden*"])
    (report,) = reports(pytester)
    assert all(check["n_compared"] == 0 for check in report["checks"])


def test_no_golden_is_a_status_with_the_command_to_record_one(pytester: pytest.Pytester, world: World) -> None:
    result = _run(pytester, World(world.model, world.trials, pytester.mkdir("empty")))

    result.stdout.fnmatch_lines(["NO_GOLDEN: *--fv-regen-golden --fv-src=PATH --fv-model=*"])
    (report,) = reports(pytester)
    assert statuses(report)["prompt_boundary"] == "NO_GOLDEN"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: 3", "key 'rules': input should be a valid list"),
        ("rules: [{key: fv_vectors}]", "unknown key 'fv_vectors'; expected one of prompt_boundary"),
        ("rules: [{key: fv_vector, atol: -1}]", "rule 0: key 'atol': input should be greater"),
        ("rules: [{key: fv_vector, tol: 1}]", "rule 0: unknown key 'tol'"),
        ("rules: [", "not valid YAML"),
    ],
)
def test_a_wrong_tolerances_file_is_named_with_the_place(
    pytester: pytest.Pytester, world: World, text: str, message: str
) -> None:
    path = pytester.path / "mine.yaml"
    path.write_text(text)

    result = _run(pytester, world, f"--fv-tolerances={path}")

    result.stdout.fnmatch_lines([f"*mine.yaml: *{message}*"])
