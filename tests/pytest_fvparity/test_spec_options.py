"""--fv-spec, --fv-quant and --fv-device-map: checked before anything runs, counted, told of, and reproduced."""

from __future__ import annotations

import pytest

from fvcore.formats import write_text
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.model import placement
    from tests.pytest_fvparity.worlds import World, reports


SPEC = """
blocks_path: model.layers
attn_path_in_block: self_attn
out_proj_path_in_attn: o_proj
"""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fv-spec=bert"], "*--fv-spec: Unsupported model spec: 'bert'; supported: bitnet, bloom, *"),
        (["--fv-spec=absent.yaml"], "*--fv-spec: *absent.yaml: no such file*"),
        (["--fv-spec=wrong.yaml"], "*--fv-spec: *wrong.yaml: no ModelSpec: missing key 'attn_path_in_block'*"),
        (["--fv-device=cpu", "--fv-device-map=auto"], "*two answers to one question*"),
        (["--fv-device=tpu"], "*--fv-device: expected cpu, cuda, cuda:N or auto, found 'tpu'*"),
        (
            ["--fv-quant=4bit", "--fv-src=.", "--fv-live"],
            "*--fv-live runs the reference, which is recorded unquantised*",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(
    world: World, pytester: pytest.Pytester, options: list[str], message: str
) -> None:
    write_text(pytester.path / "wrong.yaml", "blocks_path: model.layers\nout_proj_path_in_attn: o_proj\n")
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, *options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([message])


def test_a_users_spec_is_used_told_of_and_carried_by_the_reproduce_command(
    world: World, pytester: pytest.Pytester
) -> None:
    write_text(pytester.path / "own.yaml", SPEC + "dtype: bf16\ndevice_map: auto\n")
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, "--fv-spec=own.yaml")
    result.assert_outcomes(passed=6)
    report = reports(pytester)[0]

    here = report["conditions"]["spec"][1]
    assert here == "own (file own.yaml): model.layers / self_attn / o_proj"
    # Its defaults are no options: the run is the one that the golden is of.
    assert report["profile"]["identity"]["dtype"] == "fp32"
    assert report["conditions"]["spec_defaults"][1].startswith("dtype bf16, device_map auto; ignored")
    assert "--fv-spec=own.yaml" in report["checks"][0]["repro_command"]


@pytest.mark.slow
def test_the_ini_file_names_a_spec_beside_it(world: World, pytester: pytest.Pytester) -> None:
    write_text(pytester.path / "own.yaml", SPEC.replace("self_attn", "attention"))
    pytester.makeini("[pytest]\nfv_spec = own.yaml\n")
    result = pytester.runpytest_inprocess("-m", "parity", *world.options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*Spec 'own' failed to resolve out_proj path*missing 'attention' at 'model.layers.0'*found there: self_attn, mlp*"
        ]
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fv-quant=8bit"], "*quant 8bit needs bitsandbytes, which is not installed*"),
        (["--fv-device-map=auto"], "*device_map 'auto' needs accelerate, which is not installed*"),
    ],
)
def test_what_is_not_installed_is_an_error_and_no_skip(
    world: World, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    # The same whether the packages are there or not.
    monkeypatch.setattr(placement, "find_spec", lambda name: None)
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, *options)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([message])


def test_auto_is_the_cpu_where_there_is_no_gpu(
    world: World, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    result = pytester.runpytest_inprocess("-m", "parity", *world.options, "--fv-device=auto")
    result.assert_outcomes(passed=6)
    assert reports(pytester)[0]["profile"]["conditions"]["device"] == "cpu"
