"""Damaged files that a user hands over: the milestone plans' artifacts (--fv-candidate-dir) and tolerances.

Each is one clear error, is found to differ, or says plainly what it is taken for; and no file is changed.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fvcore import shipped
from pytest_fvparity.parity.checks import ParityRun
from tests.late import RUNNING

if RUNNING:
    import torch

    from pytest_fvparity.candidates.candidates import FromFolder
    from pytest_fvparity.golden import golden
    from pytest_fvparity.parity import tolerances
    from tests.fuzz.damage import Campaign, byte_damage, contents, drawn, json_damage, tell


N = {
    "mean_activations.pt, bytes": 150,
    "mean_activations.pt, pickle": 250,
    "fv_global_resid.pt, bytes": 150,
    "fv_global_resid.pt, pickle": 250,
    "top_heads.json, bytes": 100,
    "top_heads.json, structure": 250,
    "tolerances, bytes": 150,
    "tolerances, structure": 100,
}
KEYS = {"mean_activations.pt": "mean_activations", "fv_global_resid.pt": "fv_vector", "top_heads.json": "top_heads"}

GOLDEN = Path(__file__).parents[2] / "golden" / "tiny_antonym" / shipped.TRIALS["tiny-llama"].stem / "src"

if RUNNING:
    RECORDED = golden.Golden.open(GOLDEN)
    MEANS: torch.Tensor = RECORDED.stored("mean_activations")["mean_activations"]  # type: ignore[assignment]
    VECTOR: torch.Tensor = RECORDED.stored("fv_vector")["function_vector"]  # type: ignore[assignment]
    TOLERANCES = tolerances.DEFAULTS.read_text()


# ---------------------------------------------------------------- the plans' files


def saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@cache
def plan_files() -> dict[str, bytes]:
    """What a run of the plans would have left, had it found what the golden holds."""
    heads: Any = RECORDED.stored("top_heads")["heads"]
    rows = [{"layer": layer, "head": head, "rank_score": 0.1, "n_trials": 10} for layer, head in heads]
    top = {"meta": {"k": len(rows), "model": "m", "score_key": "mean_delta_p"}, "heads": rows}
    vector = {"fv_global_resid": VECTOR, "resid_dim": len(VECTOR), "n_heads": len(rows)}
    return {
        "mean_activations.pt": saved(MEANS),
        "fv_global_resid.pt": saved(vector),
        "top_heads.json": json.dumps(top).encode(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, data in plan_files().items():
        (tmp_path / name).write_bytes(data)
    return tmp_path


def judged(folder: Path, key: str) -> object:
    """What a run makes of a key that the folder holds; it must agree to the last bit."""
    run = ParityRun(FromFolder(folder), RECORDED, tolerances.Tolerances((), "fp32", "cpu"))
    verdict = run.chained(key)
    if not verdict.passed:
        raise golden.Refused("found to differ")
    return verdict


def tensor_said(name: str) -> Callable[[bytes], Any]:
    """What torch itself reads: the numbers, whatever lies around them in the file."""

    def said(data: bytes) -> Any:
        try:
            value = torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
            if name == "fv_global_resid.pt" and isinstance(value, dict):
                value = value["fv_global_resid"]
            shape = value.shape if name == "mean_activations.pt" else value.numel()
            return value.dtype, shape, value.layout, value.contiguous().view(torch.uint8).numpy().tobytes()
        except Exception:  # of as many kinds as there are damages
            return None

    return said


def heads_said(data: bytes) -> str | None:
    try:
        value = json.loads(data)
        return json.dumps(["meta" in value, [[row["layer"], row["head"]] for row in value["heads"]]])
    except (ValueError, RecursionError, KeyError, TypeError):
        return None


@st.composite
def pickle_damage(draw: st.DrawFn, data: bytes) -> bytes:
    """One record inside the archive is damaged, and its check sum is right: the unpickler and the storages see it."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    pickles = [name for name in records if name.endswith("data.pkl")]
    name = draw(st.sampled_from([*records, *3 * pickles]))
    records[name] = draw(byte_damage(records[name]))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for record, content in records.items():
            archive.writestr(record, content)
    return buffer.getvalue()


@pytest.mark.parametrize("name", [name for name in N if not name.startswith("tolerances")])
def test_damaged_plan_files(folder: Path, name: str, part: int) -> None:
    file, _, kind = name.partition(", ")
    sound, path = plan_files()[file], folder / file
    damage = {
        "bytes": lambda: byte_damage(sound),
        "pickle": lambda: pickle_damage(sound),
        "structure": lambda: json_damage(sound.decode()),
    }[kind]()
    means, campaign = heads_said if file.endswith(".json") else tensor_said(file), Campaign()

    @drawn(N[name] // part)
    @given(damage)
    def one(data: bytes) -> None:
        campaign.hurt(data, sound, means)
        path.write_bytes(data)
        before = contents(folder)
        campaign.refused(lambda: judged(folder, KEYS[file]), path)
        assert contents(folder) == before

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of what it reads from strange files
        one()
    tell(name, campaign, N[name] // part)


@pytest.mark.parametrize("file", KEYS)
def test_the_undamaged_plan_files_agree(folder: Path, file: str) -> None:
    judged(folder, KEYS[file])


ODD: dict[str, Callable[[torch.Tensor], Any]] = {
    "half": lambda x: x.half(),
    "double": lambda x: x.double(),
    "whole numbers": lambda x: x.long(),
    "complex": lambda x: x.to(torch.complex64),
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "quantized": lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8),
    "empty": lambda x: x[:0],
    "one number": lambda x: x.flatten()[0],
    "other order": lambda x: x.flip(0),
    "a row more": lambda x: torch.cat([x, x[:1]]),
    "a list": lambda x: [x],
    "a dictionary": lambda x: {"clean_mean": x},
    "numbers in a list": lambda x: x.tolist(),
    "nothing": lambda x: None,
    "text": lambda x: "tensor",
    "a number": lambda x: 1.0,
    "nan": lambda x: x * float("nan"),
    "in a dictionary of its name": lambda x: {"fv_global_resid": [x]},
    "none in a dictionary": lambda x: {"fv_global_resid": None},
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.parametrize("file", ["mean_activations.pt", "fv_global_resid.pt"])
def test_a_sound_file_of_something_else(folder: Path, file: str, kind: str) -> None:
    sound = {"mean_activations.pt": MEANS, "fv_global_resid.pt": VECTOR}[file]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (folder / file).write_bytes(saved(ODD[kind](sound)))
        before = contents(folder)

        Campaign().refused(lambda: judged(folder, KEYS[file]), folder / file)

    assert contents(folder) == before


@pytest.mark.parametrize("value", [float, str, lambda n: n + 0.5, lambda n: None, lambda n: [n], lambda n: False])
def test_a_head_is_named_by_whole_numbers(folder: Path, value: Callable[[int], Any]) -> None:
    whole = json.loads(plan_files()["top_heads.json"])
    whole["heads"][0]["layer"] = value(whole["heads"][0]["layer"])
    (folder / "top_heads.json").write_text(json.dumps(whole))

    Campaign().refused(lambda: judged(folder, "top_heads"), folder / "top_heads.json")


# ---------------------------------------------------------------- tolerances

NUMBERS = ("atol", "rtol", "of_max", "of_norm")


def rules_said(text: str) -> list[dict[str, Any]] | None:
    """The rules as a person reads them: every scalar as it is written, nothing twice; None where there are none."""
    pairs = _pairs(yaml.compose(text, Loader=yaml.SafeLoader))
    if pairs is None or list(pairs) != ["rules"] or not isinstance(pairs["rules"], yaml.SequenceNode):
        return None
    return [_rule_said(rule) for rule in pairs["rules"].value]


def _pairs(node: Any) -> dict[str, Any] | None:
    if not isinstance(node, yaml.MappingNode):
        return None
    keys = [key.value for key, _ in node.value]
    return dict(zip(keys, (value for _, value in node.value), strict=True)) if len(set(keys)) == len(keys) else None


def _rule_said(node: Any) -> dict[str, Any]:
    written = {name: value.value for name, value in (_pairs(node) or {}).items()}
    texts = dict.fromkeys(("leaf", "dtype", "device", "processor"), ".*") | {
        k: v for k, v in written.items() if k not in NUMBERS
    }
    return texts | {name: float(written.get(name, "0")) for name in NUMBERS}


def read_as_said(path: Path) -> object:
    """The rules that were read, if a person would read them otherwise."""
    read = tolerances.Tolerances.read(path, (), "fp32", "cpu")
    found = [rule.model_dump() for _, rule in read.rules]
    if found != rules_said(path.read_text()):
        return found
    raise golden.Refused("other rules, and they are what is written")


@pytest.mark.parametrize("kind", ["bytes", "structure"])
def test_damaged_tolerances(tmp_path: Path, kind: str, part: int) -> None:
    campaign, path, name = Campaign(), tmp_path / "mine.yaml", f"tolerances, {kind}"
    # JSON is YAML: a structure can be damaged there, and be as deep or as doubled as no YAML writer makes it.
    # Some of the rules: what is damaged is the form, and YAML is slow to read.
    some = {"rules": yaml.safe_load(TOLERANCES)["rules"][:3]}
    sound = TOLERANCES if kind == "bytes" else json.dumps(some)
    damage = byte_damage(sound.encode()) if kind == "bytes" else json_damage(sound)

    @drawn(N[name] // part)
    @given(damage)
    def one(data: bytes) -> None:
        campaign.hurt(data, sound.encode(), means=lambda data: data)
        path.write_bytes(data)
        campaign.refused(lambda: read_as_said(path), path)
        assert path.read_bytes() == data

    one()
    tell(name, campaign, N[name] // part)


RULE = "rules:\n  - {{key: mean_activations, {}}}\n"


@pytest.mark.parametrize(
    "written",
    [
        *("atol: 010", "atol: 0o17", "atol: 0x10", "atol: 1:30", "atol: true", "atol: on", "atol: ~", "atol:"),
        *("atol: 2001-01-01", "atol: 2001-99-99", "atol: .inf", "atol: .nan", "atol: -1.0e-3", "atol: 1e400"),
        *("atol: 1.0e-3, atol: 1.0e-2", "leaf: a, leaf: b", "leaf: on", "leaf: 1.0", "leaf: [a]", "leaf: '('"),
        *(
            "<<: {atol: 1.0}",
            "? [a, b] : 1",
            "atol: !!binary aGk=",
            "atol: &a 1.0, rtol: *a",
            "rtol: *b",
            "atol: 1_0.0",
        ),
        *("atol: " + "9" * 5000, "atol: " + "[" * 5000, '"a\\nb": 1', '"\\ud800": 1', 'leaf: "\\ud800"'),
    ],
)
def test_a_rule_is_read_as_it_is_written_or_not_at_all(tmp_path: Path, written: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(RULE.format(written))

    Campaign().refused(lambda: read_as_said(path), path)


def test_the_defaults_are_read_as_they_are_written(tmp_path: Path) -> None:
    shutil.copy(tolerances.DEFAULTS, tmp_path / "mine.yaml")
    with pytest.raises(golden.Refused, match="they are what is written"):
        read_as_said(tmp_path / "mine.yaml")
