"""Two tiers: what the core holds, what is compared with it, and how the rest comes back whole or not at all."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from fvcore import shipped
from fvcore.formats import read_json, sha256_file, write_json, write_safetensors
from pytest_fvparity import cli
from pytest_fvparity.golden.manifest import FULL, MANIFEST, sealed
from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.artifacts import Leaf, tensor_leaf
    from pytest_fvparity.golden import golden
    from pytest_fvparity.golden.diff import differences
    from pytest_fvparity.golden.golden import DamagedGolden, Golden
    from pytest_fvparity.golden.tiers import CORE_LIMIT, N_LARGEST, TierError, fetch, slices_of, split
    from pytest_fvparity.reference.reference import Recording
    from tests.pytest_fvparity.stand_in import digests
    from tests.pytest_fvparity.worlds import PROVENANCE, World, plant, reports, statuses


MEANS = f"mean_activations{FULL}"


@pytest.fixture
def mine(world: World, tmp_path: Path) -> World:
    """The world with a copy of its golden that may be split."""
    return replace(world, golden=Path(shutil.copytree(world.golden, tmp_path / "golden")))


@pytest.fixture
def place(mine: World) -> Path:
    (manifest,) = mine.golden.rglob(MANIFEST)
    return manifest.parent


@pytest.fixture
def elsewhere(tmp_path: Path) -> str:
    return (tmp_path / "elsewhere").as_uri()


class Bucket(MemoryFileSystem):  # type: ignore[misc]
    """A store of a scheme that may be named, in memory."""

    protocol = "s3"
    store: ClassVar[dict[str, Any]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return f"/{path.removeprefix('s3://').strip('/')}"


@pytest.fixture
def memory() -> Iterator[str]:
    fsspec.register_implementation("s3", Bucket, clobber=True)
    yield "s3://goldens/of/mine"
    Bucket.store.clear()


def same(one: Golden, other: Golden) -> bool:
    def equal(a: Leaf, b: Leaf) -> bool:
        return torch.equal(a, b) if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor) else a == b

    pairs = [(one.stored(key), other.stored(key)) for key in CHECK_KEYS]
    return all(list(a) == list(b) and all(equal(a[leaf], b[leaf]) for leaf in a) for a, b in pairs)


# ---------------------------------------------------------------- what the core holds


def test_of_the_means_the_core_holds_the_last_slot() -> None:
    means = torch.arange(2 * 3 * 5 * 4).float().view(2, 3, 5, 4)

    (piece,) = slices_of("mean_activations", {"mean_activations": means}).values()

    assert (piece.axis, piece.indices, piece.shape) == (2, [4], [2, 3, 5, 4])


def test_of_logits_the_core_holds_the_target_and_the_largest() -> None:
    logits = torch.arange(1000).float()

    found = slices_of("injection_output", {"0:0/target_id": 3, "0:0/base_logits": logits, "0:0/base_nll": 1.0})

    assert list(found) == ["0:0/base_logits"]
    assert found["0:0/base_logits"].indices == [3, *range(1000 - N_LARGEST, 1000)]


def test_a_tensor_that_would_be_kept_whole_is_no_slice() -> None:
    logits = torch.arange(N_LARGEST).float()

    assert not slices_of("injection_output", {"0:0/target_id": 3, "0:0/base_logits": logits})
    assert not slices_of("mean_activations", {"mean_activations": torch.ones(2, 3, 1, 4)})


def test_the_core_of_a_model_of_eight_billion_fits_git(tmp_path: Path) -> None:
    """Llama-3.1-8B's sizes, with the prompts and slots of ten shipped trials: it has as many slots, 87."""
    (like,) = (shipped.root() / "golden").glob(f"*/{shipped.TRIALS['tiny-llama'].stem}/src")
    opened, generator = Golden.open(like), torch.Generator().manual_seed(0)
    n_layers = n_heads = 32
    d_model, vocabulary, keys = 4096, 128256, [f"{i}:{i}" for i in range(10)]

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    logits = {f"{key}/{name}_logits": noise(vocabulary) for key in keys for name in ("base", "with")}
    recorded = {
        "prompt_boundary": opened.prompt_boundary(),
        "slot_map": opened.slot_map(),
        "mean_activations": {"mean_activations": noise(n_layers, n_heads, 87, 128)},
        "top_heads": {**opened.top_heads(), "cie": noise(10, n_layers, n_heads), "aie": noise(n_layers, n_heads)},
        "fv_vector": {"function_vector": noise(d_model), "norm": 1.0, "head_terms": noise(10, d_model)},
        "injection_output": {**opened.injection_output(), **logits},
    }
    path = tmp_path / "golden" / "src"
    golden.write(Recording(recorded, PROVENANCE, opened.profile), path)

    core, full = split(path, str(tmp_path / "full"))

    assert core == sum(file.stat().st_size for file in path.iterdir()) < CORE_LIMIT
    assert full > 50 * 2**20


# ---------------------------------------------------------------- split and fetched again


def test_a_golden_split_and_fetched_is_what_it_was(mine: World, place: Path, memory: str) -> None:
    before = Golden.open(place)

    in_core, _ = split(place, memory)
    core = Golden.open(place)
    fetched = fetch(place)
    after = Golden.open(place)

    assert in_core == sum(f.stat().st_size for f in place.iterdir() if f not in fetched)
    assert core.manifest.full is not None
    assert core.manifest.full.url == memory
    assert not core.part.whole("mean_activations")
    assert not core.part.whole("injection_output")
    assert core.part.whole("top_heads")
    means = tensor_leaf(before.stored("mean_activations"), "mean_activations")
    assert tensor_leaf(core.stored("mean_activations"), "mean_activations").equal(means[:, :, -1:])
    assert [file.name for file in fetched] == [MEANS, f"injection_output{FULL}"]
    assert all(map(after.part.whole, CHECK_KEYS))
    assert same(after, before)
    assert (core.profile, core.noise) == (before.profile, before.noise)
    assert not same(core, before)
    assert fetch(place) == []


def test_the_full_tier_lies_under_its_digests(place: Path, tmp_path: Path) -> None:
    split(place, str(tmp_path / "elsewhere"))

    files = list((tmp_path / "elsewhere").iterdir())
    assert len(files) == 2
    assert all(file.name == f"{sha256_file(file)}.safetensors" for file in files)
    assert Golden.open(place).manifest.full.url is None  # type: ignore[union-attr]
    assert [p.name for p in place.parent.iterdir()] == ["src"]


def test_a_golden_of_one_tier_has_nothing_to_fetch_and_none_is_split_twice(place: Path, memory: str) -> None:
    assert fetch(place) == []
    split(place, memory)
    with pytest.raises(TierError, match="is split already"):
        split(place, memory)


def test_a_store_that_keeps_something_else_leaves_the_golden_as_it_was(
    place: Path, memory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = digests(place.parent)
    pipe = Bucket.pipe_file
    monkeypatch.setattr(Bucket, "pipe_file", lambda self, name, data: pipe(self, name, data[:-1]))

    with pytest.raises(TierError, match=r"s3://.*expected \d+ bytes, found \d+; nothing was kept"):
        split(place, memory)

    assert digests(place.parent) == before


@pytest.mark.parametrize("url", ["nosuch://store", "file:///no/such/folder"])
def test_a_store_that_is_not_there_is_one_clear_error(url: str, place: Path, elsewhere: str) -> None:
    split(place, elsewhere)
    before = digests(place)

    with pytest.raises(TierError, match=rf"{url}/[0-9a-f]{{64}}\.safetensors: ."):
        fetch(place, url)

    assert digests(place) == before


@pytest.mark.parametrize(
    "spoil, reason",
    [
        (lambda data: data[:-1], r"expected \d+ bytes, found \d+; nothing was kept"),
        (lambda data: data + b"x" * 10_000_000, r"expected \d+ bytes, found more than \d+; nothing was kept"),
        (lambda data: bytes([data[0] ^ 1]) + data[1:], r"sha256 .{12}\.\.\. expected, .{12}\.\.\. found; nothing was"),
    ],
)
def test_what_is_fetched_and_is_not_what_was_stored_is_not_kept(
    spoil: Callable[[bytes], bytes], reason: str, place: Path, elsewhere: str, tmp_path: Path
) -> None:
    split(place, elsewhere)
    for file in (tmp_path / "elsewhere").iterdir():
        file.write_bytes(spoil(file.read_bytes()))
    before = digests(place)

    with pytest.raises(TierError, match=reason):
        fetch(place)

    assert digests(place) == before


def test_without_a_url_it_must_be_named(place: Path, tmp_path: Path) -> None:
    split(place, str(tmp_path / "elsewhere"))

    with pytest.raises(TierError, match="does not say where the full tier lies; name it with --url"):
        fetch(place)

    assert len(fetch(place, str(tmp_path / "elsewhere"))) == 2


# ---------------------------------------------------------------- damage


def test_a_full_file_that_was_changed_is_damage_and_is_fetched_anew(place: Path, elsewhere: str) -> None:
    split(place, elsewhere)
    fetch(place)
    (place / MEANS).write_bytes((place / MEANS).read_bytes()[:-1])

    with pytest.raises(DamagedGolden, match=rf"{MEANS}: damaged: sha256"):
        Golden.open(place)

    assert [file.name for file in fetch(place)] == [MEANS]
    assert Golden.open(place).part.whole("mean_activations")


def test_a_full_tier_of_another_recording_is_damage_even_if_the_manifest_vouches_for_it(
    place: Path, elsewhere: str
) -> None:
    split(place, elsewhere)
    fetch(place)
    means = tensor_leaf(Golden.open(place).stored("mean_activations"), "mean_activations")
    write_safetensors(place / MEANS, {"mean_activations": means + 1})
    manifest = read_json(place / MANIFEST)
    manifest["full"]["files"]["mean_activations"]["sha256"] = sha256_file(place / MEANS)
    write_json(place / MANIFEST, sealed(manifest))

    with pytest.raises(DamagedGolden, match="the core's slice of mean_activations 'mean_activations' is none of the"):
        Golden.open(place)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"axis": 9}, "axis 9 of"),
        ({"indices": [10**6]}, "an index outside axis 2"),
        ({"indices": []}, "at least 1 item"),
        ({"indices": [0, 1]}, "the core's slice of mean_activations"),
        ({"shape": [2, 4, 3, 8]}, "index outside|the core's slice"),
    ],
)
def test_a_slice_that_does_not_fit_is_damage(change: dict[str, Any], reason: str, place: Path, elsewhere: str) -> None:
    split(place, elsewhere)
    manifest = read_json(place / MANIFEST)
    manifest["full"]["slices"]["mean_activations"]["mean_activations"] |= change
    write_json(place / MANIFEST, sealed(manifest))

    with pytest.raises(DamagedGolden, match=reason):
        Golden.open(place)


# ---------------------------------------------------------------- runs


def test_with_the_core_alone_a_run_is_partial_and_says_what_was_not_compared(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str
) -> None:
    means = tensor_leaf(Golden.open(place).stored("mean_activations"), "mean_activations")
    n_slots = means.shape[2]
    split(place, elsewhere)

    result = pytester.runpytest_inprocess("-m", "parity", *mine.options)

    assert result.ret == pytest.ExitCode.OK
    (report,) = reports(pytester)
    assert report["overall_status"] == "PARTIAL"
    assert set(statuses(report).values()) == {"PASS"}
    assert report["checks"][2]["n_compared"] == means.numel() // n_slots
    assert (
        f"; the golden holds a part, not compared: of mean_activations mean_activations (1 of {n_slots} slots held)"
        in (report["headline"])
    )
    assert "; of injection_output base_logits (" in report["headline"]
    result.stdout.fnmatch_lines(["PARTIAL: all 6 check keys agree*", "3 mean_activations  PASS *  not compared"])
    assert not list(place.glob(f"*{FULL}"))


def test_fetched_at_run_time_it_is_compared_as_a_whole(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str
) -> None:
    split(place, elsewhere)

    pytester.runpytest_inprocess("-m", "parity", *mine.options, "--fv-golden-fetch")

    (report,) = reports(pytester)
    assert report["overall_status"] == "PASS"
    assert (place / MEANS).is_file()


def test_a_full_tier_that_cannot_be_had_is_red_and_not_partial(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str, tmp_path: Path
) -> None:
    split(place, elsewhere)
    shutil.rmtree(tmp_path / "elsewhere")

    result = pytester.runpytest_inprocess("-m", "parity", *mine.options, "--fv-golden-fetch")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert report["overall_status"] == "FAIL"
    assert "elsewhere" in report["headline"]


AT = 'leaves["mean_activations"] = leaves["mean_activations"].clone(); leaves["mean_activations"][1, 2, {slot}, 3] += 0.01'


def test_a_fault_in_what_is_held_is_found_at_its_place_in_the_whole(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str
) -> None:
    n_slots = tensor_leaf(Golden.open(place).stored("mean_activations"), "mean_activations").shape[2]
    split(place, elsewhere)
    plant(pytester, "mean_activations", AT.format(slot=-1))

    result = pytester.runpytest_inprocess("-m", "parity", *mine.options)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    divergence = report["first_divergence"]
    assert divergence["leaf"] == (
        f"mean_activations[layer 1, head 2, slot {n_slots - 1} (query_predictive_token), dim 3]"
    )
    assert divergence["coordinate"]["slot"] == n_slots - 1
    assert report["checks"][2]["fault"] == "own"
    where = report["checks"][2]["where"]
    assert {axis["axis"]: axis["places"][0]["index"] for axis in where["axes"]}["slot"] == n_slots - 1
    assert where["kinds"][0]["example"]["where"] == divergence["leaf"]
    assert where["maps"][1]["row_indices"] == [n_slots - 1]


def test_a_fault_in_what_is_not_held_is_seen_when_it_is_there(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str
) -> None:
    split(place, elsewhere)
    plant(pytester, "mean_activations", AT.format(slot=5))

    seen = []
    for more in ([], ["--fv-golden-fetch"]):
        pytester.runpytest_inprocess("-m", "parity", "-k", "mean_activations", *mine.options, *more)
        seen.append(reports(pytester)[0])

    assert [report["overall_status"] for report in seen] == ["PARTIAL", "FAIL"]
    assert seen[1]["first_divergence"]["coordinate"]["slot"] == 5


def test_whose_fault_it_is_stays_unsaid_where_the_golden_cannot_tell(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str
) -> None:
    plant(pytester, "top_heads", 'leaves["cie"] = leaves["cie"] * 1.01')
    faults = []
    for _ in range(2):
        pytester.runpytest_inprocess("-m", "parity", *mine.options)
        (report,) = reports(pytester)
        assert statuses(report)["top_heads"] == "FAIL"
        faults.append(report["checks"][3]["fault"])
        if len(faults) == 1:
            split(place, elsewhere)

    assert faults == ["own", None]


def test_means_of_another_shape_are_told_apart_by_the_whole_shape(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str
) -> None:
    shape = list(tensor_leaf(Golden.open(place).stored("mean_activations"), "mean_activations").shape)
    split(place, elsewhere)
    plant(pytester, "mean_activations", 'leaves["mean_activations"] = leaves["mean_activations"][:, :, -1:].clone()')

    pytester.runpytest_inprocess("-m", "parity", *mine.options)

    (report,) = reports(pytester)
    message = report["first_divergence"]["message"]
    assert message == f"shape differs: expected {shape}, actual {[*shape[:2], 1, shape[3]]}"


@pytest.mark.slow
def test_logits_are_judged_where_they_are_held_and_none_that_moved_is_still_a_fault(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str
) -> None:
    opened = Golden.open(place)
    largest = int(tensor_leaf(opened.stored("injection_output"), "1:1/base_logits").argmax())
    split(place, elsewhere)
    faults = {
        "moved": 'leaves["1:1/base_logits"] = leaves["1:1/base_logits"].clone(); '
        'leaves["1:1/base_logits"][leaves["1:1/base_logits"].argmax()] += 0.1',
        "idle": 'leaves["0:0/with_logits"] = leaves["0:0/base_logits"]',
    }
    seen = {}
    for name, fault in faults.items():
        plant(pytester, "injection_output", fault)
        pytester.runpytest_subprocess("-m", "parity", *mine.options)
        seen[name] = reports(pytester)[0]["checks"][5]["details"]

    (off,) = [row for row in seen["moved"] if row["where"].startswith("1:1/base_logits[")]
    assert (off["where"], off["coordinate"]["token_id"]) == (f"1:1/base_logits[token_id {largest}]", largest)
    assert seen["idle"][0]["message"].startswith("injection had no effect: no logit moved on trial(s) 0:0;")


def test_a_candidate_that_lacks_what_the_core_holds_a_slice_of_is_not_judged_behind_it(
    pytester: pytest.Pytester, mine: World, place: Path, elsewhere: str
) -> None:
    split(place, elsewhere)
    plant(pytester, "mean_activations", "from fvcore.gates import NotProvided; raise NotProvided('no means')")

    result = pytester.runpytest_inprocess("-m", "parity", *mine.options)

    (report,) = reports(pytester)
    found = statuses(report)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert [found[key] for key in CHECK_KEYS[:5]] == ["PASS", "PASS", *["NOT_PROVIDED"] * 3]


def test_a_split_golden_recorded_again_is_compared_where_it_is_held(world: World, place: Path, memory: str) -> None:
    (whole,) = (manifest.parent for manifest in world.golden.rglob(MANIFEST))
    split(place, memory)
    core = differences(place, whole)
    fetch(place)
    full = differences(place, whole)

    assert {change.state for change in (*core.values(), *full.values())} == {"unchanged"}
    assert core["mean_activations"].n_compared < full["mean_activations"].n_compared


# ---------------------------------------------------------------- the commands


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fvparity", "golden", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0)


def test_the_commands_split_and_fetch(
    place: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "split", str(place), "--full-to", elsewhere) == 0
    assert f"at {elsewhere}" in capsys.readouterr().out
    assert run(monkeypatch, "fetch", str(place)) == 0
    assert f"{place / MEANS}: " in capsys.readouterr().out
    assert run(monkeypatch, "fetch", str(place)) == 0
    assert "all of it is here" in capsys.readouterr().out


def test_a_golden_that_is_damaged_is_not_split(
    place: Path, elsewhere: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (place / "slot_map.json").write_text("{}")
    before = digests(place)

    assert run(monkeypatch, "split", str(place), "--full-to", elsewhere) == 2
    assert "slot_map.json: damaged" in capsys.readouterr().err
    assert digests(place) == before
