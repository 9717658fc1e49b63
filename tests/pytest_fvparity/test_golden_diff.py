"""`--fv-golden-diff`: a recording that changes nothing, says what it would change, and exits by that."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import trials_for
from fvcore.formats import read_json, write_json
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity.golden.manifest import MANIFEST, sealed
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.artifacts import tensor_leaf
    from fvcore.pipeline import Settings
    from pytest_fvparity.golden import golden
    from pytest_fvparity.golden.diff import KEYS, MAX_LEAVES, MAX_SHOWN, KeyDiff, differences
    from pytest_fvparity.reference import reference
    from pytest_fvparity.reference.reference import Recording
    from tests.pytest_fvparity.stand_in import digests, plant, saved, start_here


@dataclass(frozen=True)
class Recorded:
    """A model and its trials on disk, the stand-in reference, and what it says."""

    model: Path
    trials: Path
    checkout: Path
    fixed: FixedTrials
    recording: Recording

    def options(self, *more: str) -> list[str]:
        named = [f"--fv-model={self.model}", f"--fv-trials={self.trials}", f"--fv-src={self.checkout}"]
        return [*named, "--fv-edit-layer=1", "--fv-top-heads=3", "-p", "no:cacheprovider", *more]


@pytest.fixture(scope="module", autouse=True)
def _in_process() -> Iterator[None]:
    """What a process of its own adds to a recording is tested apart."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_start", start_here)
        yield


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("world")
    lm = saved("llama", folder / "random-llama")
    path = folder / "fixed_trials_pairs.json"
    trials.write(path, trials_for(lm, n_trials=2, n_shots=2).file)
    fixed, checkout = trials.read(path), plant(folder)
    recording = reference.run(checkout, lm, fixed, Settings(edit_layer=1, n_top_heads=3))
    return Recorded(folder / "random-llama", path, checkout, fixed, recording)


@pytest.fixture
def path(world: Recorded, pytester: pytest.Pytester) -> Path:
    """Where the golden belongs in the project that pytester makes."""
    return pytester.path / "golden" / golden.relative_path(world.fixed.dataset, world.fixed.id, "src")


@pytest.fixture
def started(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    pytester.makeini("[pytest]")
    return pytester.runpytest_inprocess


def changed(recording: Recording, key: str, leaf: str, value: Any) -> Recording:
    artifact = {**recording.artifacts[key], leaf: value}
    return replace(recording, artifacts={**recording.artifacts, key: artifact})


def written(pytester: pytest.Pytester) -> dict[str, Any]:
    (file,) = pytester.path.glob("reports/*/*/src/golden_diff.json")
    found: dict[str, Any] = read_json(file)
    return found


# ---------------------------------------------------------------- a run


@pytest.mark.slow
def test_a_golden_that_would_come_out_the_same_is_status_0(
    world: Recorded, path: Path, pytester: pytest.Pytester, started: Callable[..., pytest.RunResult]
) -> None:
    golden.write(world.recording, path)
    before = digests(pytester.path / "golden")

    result = started(*world.options("--fv-golden-diff"))

    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines([f"fvparity: {path} would stay as it is; nothing was written there"])
    result.stdout.fnmatch_lines([f"  {key:<18}unchanged" for key in KEYS])
    assert digests(pytester.path / "golden") == before
    assert {found["state"] for found in written(pytester)["keys"].values()} == {"unchanged"}
    there = {file.name for file in pytester.path.glob("reports/**/*") if file.is_file()}
    assert there == {".gitignore", "golden_diff.json"}


@pytest.mark.slow
def test_what_would_change_is_status_1_in_ci_too_and_nothing_is_changed(
    world: Recorded,
    path: Path,
    pytester: pytest.Pytester,
    started: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aie = tensor_leaf(world.recording.artifacts["top_heads"], "aie").clone()
    aie[1, 2] += 0.25
    golden.write(changed(world.recording, "top_heads", "aie", aie), path)
    before = digests(pytester.path / "golden")
    monkeypatch.setenv("CI", "true")

    result = started(*world.options("--fv-golden-diff"))

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"fvparity: {path} would change; nothing was written there"])
    result.stdout.fnmatch_lines(["  top_heads         1 of * values change, by up to 0.25", "  fv_vector * unchanged"])
    assert digests(pytester.path / "golden") == before
    found = written(pytester)
    assert found["golden"] == path.relative_to(pytester.path / "golden").as_posix()
    (leaf,) = found["keys"]["top_heads"]["leaves"]
    assert (leaf["leaf"], leaf["where"]) == ("aie", "aie[axis0 1, axis1 2]")
    assert leaf["old"] - leaf["new"] == pytest.approx(0.25)
    assert (leaf["n_changed"], leaf["n_compared"]) == (1, aie.numel())
    assert "passed" not in result.stdout.str()


@pytest.mark.slow
def test_a_golden_that_is_not_there_yet_is_a_change(
    world: Recorded, pytester: pytest.Pytester, started: Callable[..., pytest.RunResult]
) -> None:
    result = started(*world.options("--fv-golden-diff"))

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"  {key:<18}new" for key in KEYS])
    assert not (pytester.path / "golden").exists()


@pytest.mark.parametrize(
    "more, message",
    [
        (["--fv-regen-golden"], "--fv-golden-diff is a dry run of recording and --fv-regen-golden is none"),
        (["--fv-live"], "--fv-golden-diff is a dry run of recording and --fv-live is none: give one of them"),
        (["-n", "2"], "--fv-golden-diff records goldens and cannot run on several workers: leave out -n"),
        (["-k", "no_such_stage"], "--fv-golden-diff: no parity stage is selected, so there is nothing to record"),
    ],
)
def test_it_is_refused_beside_what_contradicts_it(
    more: list[str], message: str, world: Recorded, started: Callable[..., pytest.RunResult]
) -> None:
    result = started(*world.options("--fv-golden-diff", *more))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stdout.str() + result.stderr.str()


def test_without_a_checkout_the_way_to_one_is_shown(world: Recorded, started: Callable[..., pytest.RunResult]) -> None:
    named = [f"--fv-model={world.model}", f"--fv-trials={world.trials}"]

    result = started(*named, "--fv-golden-diff")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"--fv-golden-diff needs a checkout of the reference: {reference.GET_ONE}" in result.stderr.str()


# ---------------------------------------------------------------- what is told of a change


@pytest.fixture
def two(world: Recorded, tmp_path: Path) -> Callable[..., dict[str, KeyDiff]]:
    """The differences from the golden to a changed one."""

    def found(key: str, leaf: str, value: Any) -> dict[str, KeyDiff]:
        golden.write(world.recording, tmp_path / "old")
        golden.write(changed(world.recording, key, leaf, value), tmp_path / "new")
        return differences(tmp_path / "old", tmp_path / "new")

    return found


def test_values_are_shown_short_and_leaves_that_come_or_go_are_changes(
    two: Callable[..., dict[str, KeyDiff]], world: Recorded
) -> None:
    text: Any = world.recording.artifacts["prompt_boundary"]["0:0/clean/text"]

    (leaf,) = two("prompt_boundary", "0:0/clean/text", "x" * 5000)["prompt_boundary"].leaves
    (added,) = two("fv_vector", "more", "y" * 5000)["fv_vector"].leaves

    assert (leaf.old, leaf.new) == (text[:30] + "...", "x" * 30 + "...")
    assert (added.leaf, added.old, added.new) == ("more", None, "y" * MAX_SHOWN + "...")


def test_a_difference_that_is_no_number_is_a_word_that_json_holds(two: Callable[..., dict[str, KeyDiff]]) -> None:
    found = two("fv_vector", "function_vector", torch.full((32,), torch.nan))

    assert found["fv_vector"].max_abs_diff == found["fv_vector"].leaves[0].new == "nan"
    json.dumps({key: diff.model_dump() for key, diff in found.items()}, allow_nan=False)


def test_leaves_beyond_the_first_hundred_are_counted(world: Recorded, tmp_path: Path) -> None:
    slots = world.recording.artifacts["slot_map"]
    more = {f"leaf {i}": i for i in range(MAX_LEAVES + 7)}
    golden.write(world.recording, tmp_path / "old")
    new = {**world.recording.artifacts, "slot_map": {**slots, **more}}
    golden.write(replace(world.recording, artifacts=new), tmp_path / "new")

    found = differences(tmp_path / "old", tmp_path / "new")["slot_map"]

    assert (len(found.leaves), found.n_leaves_left_out) == (MAX_LEAVES, 7)
    assert found.n_changed == MAX_LEAVES + 7


def test_a_manifest_s_own_change_counts_and_is_named(world: Recorded, tmp_path: Path) -> None:
    for name in ("old", "new"):
        golden.write(world.recording, tmp_path / name)
    manifest = read_json(tmp_path / "old" / MANIFEST)
    manifest["noise"]["fv_vector"]["norm"] = 0.5
    write_json(tmp_path / "old" / MANIFEST, sealed(manifest))

    found = differences(tmp_path / "old", tmp_path / "new")

    assert [key for key, change in found.items() if change.state != "unchanged"] == ["manifest"]
    assert [leaf.leaf for leaf in found["manifest"].leaves] == ["noise/fv_vector/norm"]
    assert any(diff.state != "unchanged" for diff in found.values())


def test_an_old_file_that_cannot_be_read_is_said_to_be_so(world: Recorded, tmp_path: Path) -> None:
    for name in ("old", "new"):
        golden.write(world.recording, tmp_path / name)
    (tmp_path / "old" / "fv_vector.json").write_text("{")

    assert str(differences(tmp_path / "old", tmp_path / "new")["fv_vector"]) == "the old one cannot be read"


def test_a_tensor_that_changes_everywhere_is_one_line(two: Callable[..., dict[str, KeyDiff]], world: Recorded) -> None:
    means = tensor_leaf(world.recording.artifacts["mean_activations"], "mean_activations")

    found = two("mean_activations", "mean_activations", torch.zeros_like(means))["mean_activations"]

    (leaf,) = found.leaves
    assert leaf.n_changed == found.n_changed <= means.numel()
    assert str(found) == f"{found.n_changed} of {means.numel()} values change, by up to {float(means.abs().max()):.3g}"
