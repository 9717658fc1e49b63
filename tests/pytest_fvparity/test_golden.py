"""Goldens on disk: how they come to be, what guards them, and `--fv-regen-golden` and `--fv-live` from outside."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fvcore import shipped
from fvcore.embedded.random_models import trials_for
from fvcore.formats import read_json, write_json
from fvcore.gates import Refused
from fvcore.profile import Identity, Profile
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity.golden.manifest import sealed
from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.artifacts import tensor_leaf
    from fvcore.pipeline import Settings, profile_of, run
    from pytest_fvparity.golden import golden
    from pytest_fvparity.golden.diff import KEYS, KeyDiff
    from pytest_fvparity.golden.golden import DamagedGolden, Golden, NoGolden, StaleGolden
    from pytest_fvparity.parity.noise import Noise
    from pytest_fvparity.reference import reference
    from pytest_fvparity.reference.reference import Recording
    from tests.pytest_fvparity.stand_in import digests, plant, saved, start_here


FILES = sorted(
    [f"{key}.json" for key in CHECK_KEYS]
    + [f"{key}.safetensors" for key in ("mean_activations", "top_heads", "fv_vector", "injection_output")]
)
RECORD_AGAIN = "or record it again with --fv-regen-golden --fv-src PATH"


@dataclass(frozen=True)
class World:
    """A tiny random model and its trials on disk, and a recording of them with fvcore in the reference's place."""

    model: Path
    trials: Path
    fixed: FixedTrials
    recording: Recording

    @property
    def relative(self) -> Path:
        return golden.relative_path(self.fixed.dataset, self.fixed.id, "src")

    def options(self, *more: str) -> list[str]:
        named = [f"--fv-model={self.model}", f"--fv-trials={self.trials}"]
        return [*named, "--fv-edit-layer", "1", "--fv-top-heads", "3", "-p", "no:cacheprovider", *more]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    lm = saved("llama", folder / "random-llama")
    path = folder / "fixed_trials_pairs.json"
    trials.write(path, trials_for(lm, n_trials=2, n_shots=2).file)
    fixed, settings = trials.read(path), Settings(edit_layer=1, n_top_heads=3)
    provenance = {
        "repository": reference.REPOSITORY,
        "commit": "unknown",
        "sources": {"src/a.py": "0" * 64},
        "normalisations": {"applied": ["one"], "already": []},
        "versions": {"python": "3"},
    }
    recording = Recording(run(lm, fixed, settings), provenance, profile_of(lm, fixed, settings))
    return World(folder / "random-llama", path, fixed, recording)


@pytest.fixture
def path(world: World, tmp_path: Path) -> Path:
    """A golden directory, written."""
    path = tmp_path / "golden" / world.relative
    golden.regenerate(lambda _: world.recording, path)
    return path


def words(changes: dict[str, KeyDiff]) -> dict[str, str]:
    return {key: str(change) for key, change in changes.items()}


def with_leaf(recording: Recording, key: str, leaf: str, value: Any) -> Recording:
    changed = {**recording.artifacts, key: {**recording.artifacts[key], leaf: value}}
    return replace(recording, artifacts=changed)


def one_after_the_other(*recordings: Recording | Exception) -> Callable[[bool], Recording]:
    left = list(recordings)

    def record(with_noise: bool) -> Recording:
        following = left.pop(0)
        if isinstance(following, Exception):
            raise following
        return following

    return record


# ---------------------------------------------------------------- writing and reading


def test_a_golden_reads_back_what_was_recorded(world: World, path: Path) -> None:
    opened = Golden.open(path)

    assert sorted(opened.manifest.files) == FILES
    assert opened.profile == world.recording.profile
    assert opened.manifest.reference.model_dump() == {"origin": "recorded", **world.recording.provenance}
    for key in CHECK_KEYS:
        expected, found = world.recording.artifacts[key], getattr(opened, key)()
        assert list(found) == list(expected)
        for leaf, value in expected.items():
            same = value.equal(found[leaf]) if isinstance(value, torch.Tensor) else value == found[leaf]
            assert same, f"{key} {leaf}"


def test_a_golden_s_bytes_depend_on_the_recording_alone(world: World, path: Path, tmp_path: Path) -> None:
    golden.regenerate(lambda _: world.recording, tmp_path / "elsewhere")

    assert digests(tmp_path / "elsewhere") == digests(path)


def test_the_manifest_says_how_to_record_it_again(path: Path) -> None:
    words = Golden.open(path).manifest.command

    assert words.startswith("pytest -m parity --fv-regen-golden --fv-src=PATH --fv-model=")
    assert words.endswith(
        "--fv-edit-layer=1 --fv-top-heads=3 --fv-token-class=-1 --fv-reference-profile=src --fv-dtype=fp32 --fv-attn=sdpa"
    )


# ---------------------------------------------------------------- recording


def test_a_new_golden_is_described_as_new_and_the_same_one_as_unchanged(world: World, tmp_path: Path) -> None:
    first = golden.regenerate(lambda _: world.recording, tmp_path / "golden")
    again = golden.regenerate(lambda _: world.recording, tmp_path / "golden")

    assert words(first) == dict.fromkeys(KEYS, "new")
    assert words(again) == dict.fromkeys(KEYS, "unchanged")
    assert [p.name for p in tmp_path.iterdir()] == ["golden"]


def test_what_a_new_recording_changes_is_counted_and_measured(world: World, path: Path) -> None:
    aie = tensor_leaf(world.recording.artifacts["top_heads"], "aie").clone()
    aie[1, 2] += 0.25
    changed = with_leaf(world.recording, "top_heads", "aie", aie)
    changed = with_leaf(changed, "prompt_boundary", "bos/adds_bos", False)
    prompts = world.recording.artifacts["prompt_boundary"]
    n_values = sum(len(value) if isinstance(value, list) else 1 for value in prompts.values())
    (path / "fv_vector.json").write_text("{")

    found = words(golden.regenerate(lambda _: changed, path))

    assert found["slot_map"] == found["manifest"] == "unchanged"
    assert found["prompt_boundary"] == f"1 of {n_values} values change"
    assert found["top_heads"].startswith("1 of ")
    assert found["top_heads"].endswith(" values change, by up to 0.25")
    assert found["fv_vector"] == "the old one cannot be read"
    assert Golden.open(path).top_heads()["aie"].equal(aie)  # type: ignore[union-attr]


def test_noise_is_measured_in_the_first_of_the_two_recordings_alone(world: World, path: Path) -> None:
    asked = []

    def record(with_noise: bool) -> Recording:
        asked.append(with_noise)
        noise = Noise(("repeat",), {"fv_vector": {"norm": 0.5}}) if with_noise else Noise()
        return replace(world.recording, noise=noise)

    golden.regenerate(record, path)

    assert asked == [True, False]
    assert Golden.open(path).noise == Noise(("repeat",), {"fv_vector": {"norm": 0.5}})


def test_two_recordings_that_differ_are_refused_and_nothing_changes(world: World, path: Path) -> None:
    before = digests(path.parents[2])
    norm = world.recording.artifacts["fv_vector"]["norm"]
    assert isinstance(norm, float)
    unsteady = with_leaf(world.recording, "fv_vector", "norm", norm + 1e-12)

    with pytest.raises(Refused, match=r"two recordings .* differ in fv_vector\.json, manifest\.json; nothing was"):
        golden.regenerate(one_after_the_other(unsteady, world.recording), path)

    assert digests(path.parents[2]) == before


@pytest.mark.parametrize("n_good", [0, 1])
def test_a_recording_that_fails_leaves_no_trace(n_good: int, world: World, path: Path, tmp_path: Path) -> None:
    before = digests(tmp_path)
    failing: list[Recording | Exception] = [*[world.recording] * n_good, RuntimeError("the reference is gone")]

    for target in (path, tmp_path / "golden" / "new" / "and" / "deep"):
        with pytest.raises(RuntimeError, match="the reference is gone"):
            golden.regenerate(one_after_the_other(*failing), target)

    assert digests(tmp_path) == before


def test_a_swap_that_fails_half_way_puts_the_old_golden_back(
    world: World, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, rename = digests(path.parents[2]), Path.rename

    def full_disk(self: Path, target: Path) -> Path:
        if self.name == "first":
            raise OSError("no space left")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", full_disk)
    changed = with_leaf(world.recording, "fv_vector", "norm", 1.0)
    with pytest.raises(OSError, match="no space left"):
        golden.regenerate(lambda _: changed, path)

    assert digests(path.parents[2]) == before


# ---------------------------------------------------------------- damage


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte_in_any_file_is_named(name: str, path: Path) -> None:
    content = bytearray((path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)

    with pytest.raises(DamagedGolden) as caught:
        Golden.open(path)

    assert str(path / name) in str(caught.value)
    assert "damaged: sha256" in str(caught.value)
    assert RECORD_AGAIN in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_is_named(name: str, path: Path) -> None:
    (path / name).unlink()

    with pytest.raises(DamagedGolden, match=f"{name}: missing, the manifest lists it; .*{RECORD_AGAIN}"):
        Golden.open(path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_the_manifest_does_not_vouch_for_is_named(name: str, path: Path) -> None:
    manifest = read_json(path / golden.MANIFEST)
    del manifest["files"][name]
    write_json(path / golden.MANIFEST, sealed(manifest))

    with pytest.raises(DamagedGolden, match=f"the manifest says nothing of {name}; .*{RECORD_AGAIN}"):
        Golden.open(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not valid JSON"),
        ("[]", "valid dictionary"),
        ('{"schema_version": 3}', "missing key 'profile'"),
        (b"\xff\xfe", "not UTF-8 text"),
        (None, "no such file"),
    ],
)
def test_a_manifest_that_is_none_is_refused_with_the_reason(text: str | bytes | None, reason: str, path: Path) -> None:
    manifest = path / golden.MANIFEST
    manifest.unlink()
    if text is not None:
        manifest.write_bytes(text if isinstance(text, bytes) else text.encode())

    with pytest.raises(DamagedGolden, match=f"the golden's manifest cannot be read: .*{reason}.*{RECORD_AGAIN}"):
        Golden.open(path)


@pytest.mark.parametrize("more", [{}, {"a_field_of_the_future": 1}])
def test_a_manifest_of_another_schema_is_refused_by_its_version(more: Mapping[str, Any], path: Path) -> None:
    manifest = read_json(path / golden.MANIFEST)
    write_json(path / golden.MANIFEST, {**manifest, **more, "schema_version": 4})

    with pytest.raises(DamagedGolden, match=f"manifest schema 4, this version reads 3: another .*; .*{RECORD_AGAIN}"):
        Golden.open(path)


def test_a_manifest_from_before_noise_was_measured_asks_to_be_recorded_again(path: Path) -> None:
    manifest = read_json(path / golden.MANIFEST)
    del manifest["noise"], manifest["variations"], manifest["digest"]
    write_json(path / golden.MANIFEST, {**manifest, "schema_version": 1})

    with pytest.raises(DamagedGolden, match=f"manifest schema 1, this version reads 3: another .*; .*{RECORD_AGAIN}"):
        Golden.open(path)


@pytest.mark.parametrize("found", ["9" * 200, [0] * 200, "a\u2028line"])
def test_a_schema_that_is_none_is_shown_short_and_on_one_line(found: Any, path: Path) -> None:
    write_json(path / golden.MANIFEST, {**read_json(path / golden.MANIFEST), "schema_version": found})

    with pytest.raises(DamagedGolden) as caught:
        Golden.open(path)

    assert len(str(caught.value)) < len(str(path)) + 260
    assert len(str(caught.value).splitlines()) == 1


def edited(manifest: dict[str, Any], *place: Any, value: Any) -> dict[str, Any]:
    inner: Any = manifest
    for part in place[:-1]:
        inner = inner[part]
    assert inner[place[-1]] != value
    inner[place[-1]] = value
    return manifest


@pytest.mark.parametrize(
    "place, value",
    [
        (["noise"], {"fv_vector": {"norm": 10.0}}),
        (["profile", "identity", "edit_layer"], 0),
        (["profile", "conditions", "model"], "another"),
        (["reference", "commit"], "0" * 40),
        (["reference", "sources", "src/a.py"], "1" * 64),
        (["command"], "rm"),
        (["variations"], ["repeat"]),
        (["digest"], "0" * 64),
        (["digest"], ""),
    ],
)
def test_a_manifest_that_was_edited_is_damaged_wherever_it_was(place: list[Any], value: Any, path: Path) -> None:
    write_json(path / golden.MANIFEST, edited(read_json(path / golden.MANIFEST), *place, value=value))

    with pytest.raises(DamagedGolden, match=rf"manifest\.json: edited: digest .*\.\.\. expected, .*{RECORD_AGAIN}"):
        Golden.open(path)


def test_the_order_of_a_manifest_s_fields_is_no_edit(path: Path) -> None:
    manifest = read_json(path / golden.MANIFEST)
    write_json(path / golden.MANIFEST, dict(reversed(manifest.items())))

    assert Golden.open(path).manifest.digest == manifest["digest"]


@pytest.mark.parametrize(
    ("noise", "reason"),
    [
        ({"fv_vector": {"norm": -1.0}}, "greater than or equal to 0"),
        ({"fv_vector": {"norm": "inf"}}, "valid number"),
        ({"a_key": {"norm": 1.0}}, "unknown check key: 'a_key'"),
    ],
)
def test_a_noise_that_is_none_is_refused(noise: Any, reason: str, path: Path) -> None:
    write_json(path / golden.MANIFEST, read_json(path / golden.MANIFEST) | {"noise": noise})

    with pytest.raises(DamagedGolden, match=f"the golden's manifest cannot be read: .*{reason}.*{RECORD_AGAIN}"):
        Golden.open(path)


# ---------------------------------------------------------------- comparable or not


def changed_identity(profile: Profile, name: str) -> Profile:
    value = getattr(profile.identity, name)
    other = value + 1 if isinstance(value, int | float) else f"other {value}"
    return profile.model_copy(update={"identity": profile.identity.model_copy(update={name: other})})


CONTENT = {
    "trials_sha256": "the trials file {id}",
    "weights_sha": "the weights of {model}",
    "tokenizer_sha": "the tokenizer of {model}",
}


@pytest.mark.parametrize("name", CONTENT)
def test_changed_content_under_the_same_name_is_a_stale_golden_and_says_how_to_record_it(
    name: str, world: World
) -> None:
    profile = world.recording.profile
    other = changed_identity(profile, name)

    with pytest.raises(StaleGolden) as caught:
        golden.require_comparable(profile, other)

    what = CONTENT[name].format(id=world.fixed.id, model=profile.conditions.model)
    want, have = getattr(profile.identity, name), getattr(other.identity, name)
    assert str(caught.value).startswith(
        f"stale golden, nothing was compared. {what} changed since it was recorded. {name}: golden {want[:12]}..., this "
        f"run {have[:12]}.... Restore what changed, or record again: pytest -m parity --fv-regen-golden --fv-src=PATH --fv-model="
    )
    assert caught.value.status == "STALE_GOLDEN"


def test_all_that_changed_is_named_and_what_the_new_trials_say_of_themselves_is_no_other_experiment(
    world: World,
) -> None:
    other = changed_identity(world.recording.profile, "trials_sha256")
    other = changed_identity(changed_identity(other, "weights_sha"), "n_trials")

    with pytest.raises(
        StaleGolden, match=r"the trials file \S+ and the weights of \S+ changed since .* n_trials: golden 2"
    ):
        golden.require_comparable(world.recording.profile, other)


@pytest.mark.parametrize("name", ["edit_layer", "dtype", "quant", "fixed_trials_id"])
def test_another_setting_beside_changed_content_is_another_experiment(name: str, world: World) -> None:
    other = changed_identity(changed_identity(world.recording.profile, "trials_sha256"), name)

    with pytest.raises(Refused, match="profile mismatch, nothing was compared") as caught:
        golden.require_comparable(world.recording.profile, other)

    assert not isinstance(caught.value, StaleGolden)


def test_another_model_is_another_experiment_and_no_stale_golden(world: World) -> None:
    other = changed_identity(world.recording.profile, "weights_sha")
    renamed = other.model_copy(update={"conditions": other.conditions.model_copy(update={"model": "another"})})

    with pytest.raises(Refused, match="profile mismatch, nothing was compared") as caught:
        golden.require_comparable(world.recording.profile, renamed)

    assert not isinstance(caught.value, StaleGolden)


@pytest.mark.parametrize("name", [name for name in Identity.model_fields if name not in CONTENT])
def test_another_identity_is_refused_and_exactly_what_differs_is_named(name: str, world: World) -> None:
    profile = world.recording.profile
    other = changed_identity(profile, name)

    with pytest.raises(Refused) as caught:
        golden.require_comparable(profile, other)

    want, have = getattr(profile.identity, name), getattr(other.identity, name)
    named = f"profile mismatch, nothing was compared. {name}: golden {want!r}, this run {have!r}. Use the golden's"
    assert str(caught.value).startswith(named)
    assert f"or record a golden of these: `{golden.command(other)}`" in str(caught.value)


def test_the_command_of_a_refusal_names_model_and_trials_by_their_paths(world: World) -> None:
    profile = world.recording.profile

    with pytest.raises(Refused, match=r"--fv-model=a/small --fv-trials=made/shared\.json --fv-edit-layer=") as caught:
        golden.require_comparable(
            profile, changed_identity(profile, "n_top_heads"), model="a/small", trials="made/shared.json"
        )

    assert str(caught.value).count("--fv-model=") == str(caught.value).count("--fv-trials=") == 1


def test_every_identity_field_that_differs_is_named(world: World) -> None:
    other = changed_identity(changed_identity(world.recording.profile, "seed"), "alpha")

    with pytest.raises(Refused, match=r"seed: golden 0, this run 1; alpha: golden 1\.0, this run 2\.0\. Use"):
        golden.require_comparable(world.recording.profile, other)


def test_conditions_may_differ(world: World) -> None:
    profile = world.recording.profile
    elsewhere = {"model": "other", "device": "cuda", "attn_implementation": "eager", "engine": "fast", "threads": 8}
    conditions = profile.conditions.model_copy(update={**elsewhere, "versions": {"torch": "0"}})

    golden.require_comparable(profile, profile.model_copy(update={"conditions": conditions}))


def test_a_run_says_which_content_changed_and_blocks_the_rest(
    world: World, pytester: pytest.Pytester, started: Callable[..., pytest.RunResult]
) -> None:
    golden.write(world.recording, pytester.path / "golden" / world.relative)
    changed = pytester.path / world.trials.name
    changed.write_bytes(world.trials.read_bytes() + b"\n")

    result = started(*replace(world, trials=changed).options())

    result.assert_outcomes(failed=1)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([f"STALE_GOLDEN: *the trials file {world.fixed.id} changed since it was recorded.*"])
    result.stdout.fnmatch_lines(["  keys       prompt_boundary STALE_GOLDEN; 5 BLOCKED"])


# ---------------------------------------------------------------- where goldens lie


def test_the_first_root_that_has_a_golden_wins(world: World, tmp_path: Path) -> None:
    roots = [tmp_path / name for name in ("none", "first", "second")]
    for root in roots[1:]:
        golden.write(world.recording, root / world.relative)

    assert golden.locate(roots, world.relative) == tmp_path / "first" / world.relative


def test_a_golden_whose_swap_was_killed_half_way_is_back_when_it_is_looked_for(tmp_path: Path, path: Path) -> None:
    root = path.parents[2]
    kept = {file.name: file.read_bytes() for file in path.iterdir()}
    shutil.copytree(path, golden.coming(path))
    path.rename(golden.previous(path))  # the first of the two renames, and then the process died

    found = golden.locate([root], path.relative_to(root))

    assert found == path
    assert {file.name: file.read_bytes() for file in path.iterdir()} == kept
    assert not golden.previous(path).exists()


def test_what_a_killed_swap_left_does_not_come_back_when_the_golden_is_deleted(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(folder: Path, **_: Any) -> None:
        if folder.exists():
            raise KeyboardInterrupt

    root, new = path.parents[2], path.with_name("new")
    shutil.copytree(path, new)
    with monkeypatch.context() as patched:
        patched.setattr(golden.shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            golden.swap(new, path)
    assert golden.previous(path).exists()
    shutil.rmtree(path)

    with pytest.raises(NoGolden):
        golden.locate([root], path.relative_to(root))


def test_a_swap_that_fails_leaves_the_old_golden_and_nothing_else(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new = path.with_name("new")
    shutil.copytree(path, new)
    (new / "new").touch()
    rename, kept = Path.rename, sorted(file.name for file in path.iterdir())

    def failing(self: Path, target: Path) -> Path:
        if target == path and self == golden.coming(path):
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        golden.swap(new, path)

    assert [folder.name for folder in path.parent.iterdir()] == [path.name]
    assert sorted(file.name for file in path.iterdir()) == kept


def test_without_a_golden_the_places_tried_and_the_command_are_named(tmp_path: Path) -> None:
    roots = [tmp_path / "mine", tmp_path / "shipped"]

    with pytest.raises(NoGolden) as caught:
        golden.locate(roots, Path("pairs", "some_trials", "src"))

    places = " or ".join(str(root / "pairs" / "some_trials" / "src") for root in roots)
    assert str(caught.value).startswith(f"no golden at {places}. Record one with `pytest -m parity --fv-regen-golden")
    assert "--fv-live in place of --fv-regen-golden" in str(caught.value)


def test_a_golden_folder_that_is_given_is_the_only_place(tmp_path: Path) -> None:
    given, rootdir = (tmp_path / name for name in ("given", "rootdir"))

    assert golden.search_roots(given, rootdir) == [given]
    assert golden.search_roots(None, rootdir) == [rootdir / "golden", shipped.root() / "golden"]


# ---------------------------------------------------------------- from outside


@pytest.fixture
def started(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Callable[..., pytest.RunResult]:
    """Run pytest as on a developer's machine."""
    monkeypatch.delenv("CI", raising=False)
    pytester.makeini("[pytest]")
    return pytester.runpytest_inprocess


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process of its own adds to a recording is tested apart."""
    monkeypatch.setattr(reference, "_start", start_here)


@pytest.mark.slow
def test_a_golden_is_recorded_and_the_checks_pass_on_it(
    world: World, pytester: pytest.Pytester, started: Callable[..., pytest.RunResult]
) -> None:
    root = plant(pytester.path)
    before = digests(root)

    result = started(*world.options("--fv-regen-golden", f"--fv-src={root}"))

    result.assert_outcomes(passed=6)
    assert result.ret == pytest.ExitCode.OK
    path = pytester.path / "golden" / world.relative
    result.stdout.fnmatch_lines([f"fvparity: recorded {path} twice, byte for byte the same"])
    result.stdout.fnmatch_lines([f"  {key:<18}new" for key in KEYS])
    recorded = Golden.open(path)
    varied = ("repeat", "attn_implementation=eager", "threads=2")
    assert recorded.noise.variations[:3] == varied
    assert list(recorded.noise.largest) == ["mean_activations", "top_heads", "fv_vector", "injection_output"]
    result.stdout.fnmatch_lines([f"  noise under {', '.join(recorded.noise.variations)}: mean_activations *"])
    assert recorded.manifest.reference.sources == {name: sha for name, sha in before.items() if name.endswith(".py")}
    assert recorded.profile.identity == world.recording.profile.identity
    assert digests(root) == before
    assert [p.name for p in path.parent.iterdir()] == ["src"]


@pytest.mark.slow
def test_a_refused_recording_ends_the_run_and_leaves_the_golden_alone(
    world: World, pytester: pytest.Pytester, started: Callable[..., pytest.RunResult]
) -> None:
    golden.write(world.recording, pytester.path / "golden" / world.relative)
    before = digests(pytester.path / "golden")
    root = plant(pytester.path, "no replacement")

    result = started(*world.options("--fv-regen-golden", f"--fv-src={root}"))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    lines = result.stdout.str() + result.stderr.str()
    assert "--fv-regen-golden: the reference was not recorded: the indirect effect is zero everywhere" in lines
    assert "passed" not in lines
    assert digests(pytester.path / "golden") == before


@pytest.mark.usefixtures("in_process")
@pytest.mark.slow
def test_a_live_run_compares_and_leaves_the_golden_alone(
    world: World, pytester: pytest.Pytester, started: Callable[..., pytest.RunResult]
) -> None:
    damaged = pytester.path / "golden" / world.relative / golden.MANIFEST
    damaged.parent.mkdir(parents=True)
    damaged.write_text("a live run does not read this")
    before = digests(pytester.path / "golden")

    result = started(*world.options("--fv-live", f"--fv-src={plant(pytester.path)}"))

    result.assert_outcomes(passed=6)
    assert result.ret == pytest.ExitCode.OK
    assert digests(pytester.path / "golden") == before


@pytest.mark.usefixtures("in_process")
@pytest.mark.slow
def test_a_live_run_of_the_words_alone_runs_no_sweep(
    world: World, pytester: pytest.Pytester, started: Callable[..., pytest.RunResult]
) -> None:
    # This reference's effects are zero everywhere, which a recording of them refuses.
    root = plant(pytester.path, "no replacement")

    result = started(*world.options("--fv-live", f"--fv-src={root}", "-k", "prompt_boundary or slot_map"))

    result.assert_outcomes(passed=2, deselected=4)


@pytest.mark.parametrize(
    ("more", "ci", "message"),
    [
        (["-n", "2"], "", "--fv-regen-golden writes goldens and cannot run on several workers: leave out -n"),
        ([], "true", "--fv-regen-golden is refused in CI, where nobody reads what changes; --fv-regen-allow-ci"),
        (["-k", "no_such_stage"], "", "no parity stage is selected, so there is nothing to record"),
        (["--fv-live"], "", "--fv-live changes no golden and --fv-regen-golden does: give one of them"),
    ],
)
def test_recording_is_refused_where_it_would_do_harm(
    more: list[str],
    ci: str,
    message: str,
    world: World,
    pytester: pytest.Pytester,
    started: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", ci)

    result = started(*world.options("--fv-regen-golden", f"--fv-src={plant(pytester.path)}", *more))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert message in result.stdout.str() + result.stderr.str()
    assert not (pytester.path / "golden").exists()


@pytest.mark.parametrize("flag", ["--fv-regen-golden", "--fv-live"])
def test_without_a_checkout_the_way_to_one_is_shown(
    flag: str, world: World, started: Callable[..., pytest.RunResult]
) -> None:
    result = started(*world.options(flag))

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert f"{flag} needs a checkout of the reference: {reference.GET_ONE}" in result.stderr.str()


def test_recording_in_ci_can_be_allowed(
    world: World,
    pytester: pytest.Pytester,
    started: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CI", "true")

    result = started(
        *world.options("--fv-regen-golden", "--fv-regen-allow-ci", f"--fv-src={plant(pytester.path)}", "--co")
    )

    assert result.ret == pytest.ExitCode.OK
    assert not (pytester.path / "golden").exists()
