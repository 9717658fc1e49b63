"""Where a result comes from: the time, the processor and what forbids it instructions; and what of it decides how to compare."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from fvcore import provenance
from fvcore.profile import NOT_RECORDED, OTHER, SAME, Conditions, Identity, Processor, Profile
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.compare import changes
    from pytest_fvparity.parity.tolerances import Tolerances


FLAGS = ["sse4_1", "avx", "avx2", "fma", "avx_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq"]
EPYC = Processor(vendor="AuthenticAMD", model="EPYC", capability="AVX2", onednn="AVX2")
XEON = Processor(vendor="GenuineIntel", model="Xeon", capability="AVX512", onednn="AVX512_CORE")


def profile(processor: Processor | None, **conditions: object) -> Profile:
    told = {"model": "m", "device": "cpu", "attn_implementation": "sdpa", "engine": "exact", "threads": 1}
    given = told | {"versions": {"torch": "2.13"}, "processor": processor} | conditions
    return Profile(identity=Identity.model_construct(), conditions=Conditions.model_validate(given))


def test_the_time_is_the_one_that_the_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    assert provenance.now() == "1970-01-02T00:00:00.000000Z"
    monkeypatch.delenv("SOURCE_DATE_EPOCH")
    assert provenance.now() > "2024"


@pytest.mark.parametrize(
    ("flags", "allowed", "name"),
    [(FLAGS, "", "AVX512_CORE"), (FLAGS, "AVX2", "AVX2"), (FLAGS[:4], "", "AVX2"), (FLAGS[:4], "AVX512_CORE", "AVX2")],
)
def test_onednn_uses_what_the_processor_has_and_the_environment_allows(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], allowed: str, name: str
) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    assert provenance._onednn(flags) == name


def test_a_process_that_is_forbidden_instructions_says_so() -> None:
    forced = {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"}
    code = "from fvcore.provenance import processor as p; print(p().capability, p().forced)"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | forced, capture_output=True, text=True, check=True
    )

    assert done.stdout.startswith("DEFAULT ")
    assert all(repr(word) in done.stdout for pair in forced.items() for word in pair)
    assert provenance.processor().capability == torch.backends.cpu.get_cpu_capability()


def test_of_several_gpus_the_one_that_computes_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = SimpleNamespace(name="the second", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", {"cuda:1": asked}.__getitem__)
    assert provenance.processor("cuda:1").model == "the second"


@pytest.mark.parametrize(("golden", "relation"), [(XEON, SAME), (EPYC, OTHER), (None, NOT_RECORDED)])
def test_the_processor_decides_whether_bits_can_be_equal(golden: Processor | None, relation: str) -> None:
    recorded, here = profile(golden), profile(XEON, model="elsewhere")

    assert recorded.processor_against(here) == relation
    assert recorded.same_kernels(here) is (relation == SAME)
    assert not recorded.same_kernels(profile(XEON, threads=2))
    shown = recorded.diff_conditions(here)
    assert shown.pop("model") == ("m", "elsewhere")
    assert shown == ({} if relation == SAME else {"processor": (str(golden or NOT_RECORDED), str(XEON))})


def test_conditions_differ_by_name_and_a_build_is_no_version() -> None:
    here = profile(XEON, versions={"torch": "2.14.1+cu130", "python": "3.13"})
    assert profile(XEON).diff_conditions(here) == {"python": (None, "3.13"), "torch": ("2.13", "2.14.1")}
    assert profile(XEON, versions={}).diff_conditions(profile(XEON)) == {"torch": (None, "2.13")}
    other = profile(XEON, versions={"torch": "2.13+cpu"})
    assert profile(XEON).diff_conditions(other) == {}
    assert not profile(XEON).same_kernels(other)  # two builds may bring two libraries of kernels
    assert changes({"a": [1, {"b": 1}]}, {"a": [1, {"b": 1.0}]}) == {"a.1.b": (1, 1.0)}
    assert changes({"a": {"b.py": 1}}, {"a": {"b.py": 2}, "c": 3}) == {'a."b.py"': (1, 2), "c": (None, 3)}


@pytest.mark.parametrize(("relation", "atol"), [(SAME, 1e-6), (NOT_RECORDED, 1e-6), (OTHER, 2e-6)])
def test_the_processor_chooses_the_row_of_the_tolerances(relation: str, atol: float) -> None:
    tolerances = Tolerances.read(None, (), "fp32", "cpu", processor=relation)

    assert tolerances.of("mean_activations")("mean_activations").atol == atol
