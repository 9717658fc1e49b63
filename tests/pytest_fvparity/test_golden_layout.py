"""The reference's own result files: a golden written as them, and a golden made of them, which is partial at best."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore.formats import read_json, read_pt, sha256_file
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity import cli
from pytest_fvparity.golden.manifest import MANIFEST
from pytest_fvparity.parity.implementation import CHECK_KEYS
from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import pipeline
    from fvcore.artifacts import tensor_leaf
    from fvcore.model import model as models
    from fvcore.pipeline import Settings
    from pytest_fvparity.golden import golden
    from pytest_fvparity.golden.golden import Golden
    from pytest_fvparity.golden.layout import LayoutError, export, import_results
    from pytest_fvparity.golden.tiers import split
    from pytest_fvparity.reference.reference import Recording
    from tests.pytest_fvparity.stand_in import digests
    from tests.pytest_fvparity.worlds import PROVENANCE, SETTINGS, World, plant, reports, statuses


MEANS, LABELS, EFFECT = (
    f"pairs_{name}" for name in ("mean_head_activations_FIXED.pt", "dummy_labels.json", "indirect_effect.pt")
)
VECTOR, HEADS = "src_fv.pt", "top_heads_src.json"


@pytest.fixture(scope="session")
def lm(world: World) -> models.LanguageModel:
    return models.load(str(world.model))


@pytest.fixture(scope="session")
def fixed(world: World) -> FixedTrials:
    return trials.read(world.trials[0])


@pytest.fixture
def recorded(world: World) -> Path:
    (manifest,) = world.golden.rglob(MANIFEST)
    return manifest.parent


@pytest.fixture
def results(recorded: Path, tmp_path: Path, fixed: FixedTrials) -> Path:
    export(recorded, tmp_path / "results")
    return tmp_path / "results" / "pairs" / fixed.id


@pytest.fixture
def imported(results: Path, lm: models.LanguageModel, fixed: FixedTrials, tmp_path: Path) -> Callable[[], Path]:
    return lambda: import_results(results, lm, fixed, SETTINGS, tmp_path / "golden")


# ---------------------------------------------------------------- export


def test_the_files_are_those_of_the_reference(recorded: Path, results: Path) -> None:
    held = Golden.open(recorded)
    means, heads, vector = held.mean_activations(), held.top_heads(), held.fv_vector()

    assert sorted(file.name for file in results.iterdir()) == sorted([MEANS, LABELS, EFFECT, VECTOR, HEADS])
    assert read_pt(results / MEANS).equal(means["mean_activations"])
    assert read_pt(results / EFFECT).equal(heads["cie"])
    written = read_pt(results / VECTOR)
    assert written.shape == (1, len(vector["function_vector"]))  # type: ignore[arg-type]
    assert written[0].equal(vector["function_vector"])
    labels = held.slot_map()["dummy_labels"]
    assert (results / LABELS).read_text() == json.dumps({"labels": labels}, indent=2)
    rows = read_json(results / HEADS)
    assert [row[:2] for row in rows] == heads["heads"]
    assert [row[2] for row in rows] == [round(row[2], 4) for row in rows] == heads["scores"].tolist()  # type: ignore[union-attr]


def test_an_export_is_the_same_bytes_again_and_overwrites_nothing_else(recorded: Path, results: Path) -> None:
    before = digests(results)

    export(recorded, results.parents[1])
    (results / HEADS).write_text("[]")
    with pytest.raises(LayoutError, match=rf"{HEADS}: holds something else already; remove it, or export"):
        export(recorded, results.parents[1])

    assert (results / HEADS).read_text() == "[]"
    assert {name: sha for name, sha in digests(results).items() if name != HEADS} == {
        name: sha for name, sha in before.items() if name != HEADS
    }


def test_a_core_without_its_full_tier_is_not_exported(recorded: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(recorded, tmp_path / "golden" / "src"))
    split(mine, str(tmp_path / "full"))

    with pytest.raises(LayoutError, match="its full tier is not here; `fvparity golden fetch` brings it"):
        export(mine, tmp_path / "results")

    assert not (tmp_path / "results").exists()


# ---------------------------------------------------------------- import


def test_an_imported_golden_holds_what_the_files_hold_and_says_so(
    imported: Callable[[], Path], recorded: Path, results: Path
) -> None:
    opened, original = Golden.open(imported()), Golden.open(recorded)

    assert opened.manifest.reference.origin == "imported"
    assert opened.manifest.reference.sources == {file.name: sha256_file(file) for file in results.iterdir()}
    assert opened.profile.identity == original.profile.identity
    assert list(opened.part.incomplete) == ["prompt_boundary", "slot_map", "fv_vector", "injection_output"]
    assert [list(opened.stored(key)) for key in CHECK_KEYS] == [
        [],
        ["dummy_labels"],
        ["mean_activations"],
        ["cie", "aie", "heads", "scores"],
        ["function_vector", "norm"],
        [],
    ]
    for key in CHECK_KEYS:
        for leaf, value in opened.stored(key).items():
            expected = original.stored(key)[leaf]
            assert expected.equal(value) if isinstance(value, torch.Tensor) else expected == value, leaf  # type: ignore


def test_the_export_of_an_import_is_the_import_s_source(
    imported: Callable[[], Path], results: Path, tmp_path: Path
) -> None:
    export(imported(), tmp_path / "again")

    assert digests(tmp_path / "again" / "pairs" / results.name) == digests(results)


def test_without_vector_and_heads_those_are_not_known(imported: Callable[[], Path], results: Path) -> None:
    (results / VECTOR).unlink()
    (results / HEADS).unlink()

    opened = Golden.open(imported())

    assert list(opened.part.incomplete) == [key for key in CHECK_KEYS if key != "mean_activations"]
    assert list(opened.top_heads()) == ["cie", "aie"]
    assert opened.fv_vector() == {}


def test_effects_of_token_classes_come_and_go(lm: models.LanguageModel, fixed: FixedTrials, tmp_path: Path) -> None:
    settings = Settings(edit_layer=1, n_top_heads=3, token_class_idx=3)
    recording = Recording(pipeline.run(lm, fixed, settings), PROVENANCE, pipeline.profile_of(lm, fixed, settings))
    path = tmp_path / "golden" / golden.relative_path(fixed.dataset, fixed.id, "src")
    golden.write(recording, path)
    (means, *_) = export(path, tmp_path / "results")

    opened = Golden.open(import_results(means.parent, lm, fixed, settings, tmp_path / "imported"))

    assert tensor_leaf(opened.top_heads(), "cie").ndim == 4
    for leaf in ("cie", "aie"):
        assert tensor_leaf(opened.top_heads(), leaf).equal(tensor_leaf(recording.artifacts["top_heads"], leaf))
    with pytest.raises(LayoutError, match=rf"{EFFECT}: expected float32 \[\d, \d, \d\] \(trial, layer, head\), found"):
        import_results(means.parent, lm, fixed, SETTINGS, tmp_path / "another")


def changed(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    return lambda results: torch.save(change(read_pt(results / name)), results / name)


def rewritten(name: str, text: str) -> Callable[[Path], None]:
    return lambda results: (results / name).write_text(text) and None


def moved_label(results: Path) -> None:
    labels = read_json(results / LABELS)
    labels["labels"][2][1] = "separator_token"
    (results / LABELS).write_text(json.dumps(labels))


class Code:
    """What a pickle would run."""

    def __reduce__(self) -> Any:
        return print, ("a pickle was run",)


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no means": (lambda r: (r / MEANS).unlink(), rf"no {MEANS}; expected results/<dataset>/<fixed_trials_id>"),
    "no labels": (lambda r: (r / LABELS).unlink(), rf"no {LABELS}"),
    "no effects": (lambda r: (r / EFFECT).unlink(), rf"no {EFFECT}"),
    "of random trials": (lambda r: (r / MEANS).rename(r / MEANS.replace("_FIXED", "")), rf"no {MEANS}"),
    "a slot more": (
        changed(MEANS, lambda x: torch.cat([x, x[:, :, :1]], dim=2)),
        rf"{MEANS}: expected float32 \[.*\] \(layer, head, slot, d_head\), found float32 \[.*another model, other trials",
    ),
    "half": (changed(MEANS, lambda x: x.half()), rf"{MEANS}: expected float32 .*, found float16"),
    "sparse": (changed(MEANS, lambda x: x.to_sparse()), rf"{MEANS}: expected a tensor float32"),
    "not finite": (changed(MEANS, lambda x: x / 0), rf"{MEANS}: holds a number that is not finite"),
    "a list": (changed(MEANS, lambda x: x.tolist()), rf"{MEANS}: expected a tensor float32 .*, found a list"),
    "code": (lambda r: torch.save(Code(), r / MEANS), rf"{MEANS}: not a file of tensors and plain values"),
    "diluted": (
        changed(EFFECT, lambda x: torch.cat([x, 0 * x])),
        rf"{EFFECT}: expected float32 .*\(trial, layer, head\)",
    ),
    "flat vector": (changed(VECTOR, lambda x: x.flatten()), rf"{VECTOR}: expected float32 \[1, \d+\] \(one, d_model\)"),
    "vector of half": (changed(VECTOR, lambda x: x.half()), rf"{VECTOR}: expected float32"),
    "a label": (
        moved_label,
        rf"{LABELS}: not the slots of this model and these trials: \[2, 'separator_token'\], here",
    ),
    "bare labels": (rewritten(LABELS, "[]"), rf"{LABELS}: expected .*labels.*found list"),
    "few heads": (rewritten(HEADS, "[[0, 1, 0.5]]"), rf"{HEADS}: expected 3 rows .*\(--top-heads\), found 1 rows"),
    "no such head": (rewritten(HEADS, "[[0, 1, 0.5], [0, 99, 0.1], [0, 2, 0]]"), rf"{HEADS}: expected 3 rows"),
    "no head at all": (rewritten(HEADS, "{}"), rf"{HEADS}: expected 3 rows .*, found dict"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_does_not_fit_is_refused_by_file_and_reason_and_nothing_is_written(
    name: str,
    imported: Callable[[], Path],
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil, reason = WRONG[name]
    spoil(results)

    with pytest.raises(Exception, match=reason) as caught:
        imported()

    assert type(caught.value).__name__ in {"LayoutError", "FormatError"}
    assert not (tmp_path / "golden").exists()
    assert "a pickle was run" not in capsys.readouterr().out


def test_no_golden_is_replaced_by_an_import(imported: Callable[[], Path]) -> None:
    path = imported()
    before = digests(path)

    with pytest.raises(LayoutError, match="there is a golden already; import under another --root, or move it away"):
        imported()

    assert digests(path) == before
    assert [p.name for p in path.parent.iterdir()] == ["src"]


# ---------------------------------------------------------------- runs


def options(world: World, imported: Path) -> list[str]:
    return [f"--fv-model={world.model}", *world.trial_options, f"--fv-golden={imported.parents[2]}"]


def test_a_run_against_an_import_is_partial_and_names_what_was_not_compared(
    pytester: pytest.Pytester, world: World, imported: Callable[[], Path]
) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", *options(world, imported()))

    assert result.ret == pytest.ExitCode.OK
    result.assert_outcomes(passed=4, skipped=2)
    (report,) = reports(pytester)
    found = statuses(report)
    assert [key for key in CHECK_KEYS if found[key] == "NOT_HELD"] == ["prompt_boundary", "injection_output"]
    assert {found[key] for key in CHECK_KEYS[1:5]} == {"PASS"}
    assert report["overall_status"] == "PARTIAL"
    assert report["first_divergence"] is None
    assert report["headline"].startswith("PARTIAL: 4 of 6 check keys compared, all agree with the reference")
    assert "not compared: prompt_boundary; injection_output; of slot_map labels, idx_map" in report["headline"]
    assert "; of fv_vector head_terms; no candidate given" in report["headline"]


def test_a_run_that_could_judge_nothing_is_not_green(
    pytester: pytest.Pytester, world: World, imported: Callable[[], Path]
) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", "-k", "prompt_boundary", *options(world, imported()))

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert report["overall_status"] == "FAIL"
    assert report["headline"].startswith("NOT_HELD: nothing could be judged at prompt_boundary: the golden has nothing")


@pytest.mark.parametrize(
    "key, fault, blamed",
    [
        ("slot_map", 'leaves["dummy_labels"] = leaves["dummy_labels"][:-1]', None),
        ("mean_activations", 'leaves["mean_activations"] = leaves["mean_activations"] + 0.01', None),
        ("top_heads", 'leaves["cie"] = leaves["cie"] * 1.01', None),
        ("fv_vector", 'leaves["function_vector"] = leaves["function_vector"] / 3', "own"),
    ],
)
def test_a_fault_in_what_is_held_is_red_and_blamed_only_where_its_inputs_are_held(
    key: str, fault: str, blamed: str | None, pytester: pytest.Pytester, world: World, imported: Callable[[], Path]
) -> None:
    plant(pytester, key, fault)

    result = pytester.runpytest_inprocess("-m", "parity", *options(world, imported()))

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (report,) = reports(pytester)
    assert statuses(report)[key] == "FAIL"
    assert report["overall_status"] == "FAIL"
    (row,) = [check for check in report["checks"] if check["key"] == key]
    assert row["fault"] == blamed


def test_a_leaf_that_nobody_knows_is_still_a_fault_at_a_key_that_is_known_whole(
    pytester: pytest.Pytester, world: World, imported: Callable[[], Path]
) -> None:
    plant(pytester, "top_heads", 'leaves["more"] = 1')

    pytester.runpytest_inprocess("-m", "parity", *options(world, imported()))

    (report,) = reports(pytester)
    assert report["first_divergence"]["message"] == "not in the golden"


def test_a_folder_of_results_is_judged_by_an_import(
    pytester: pytest.Pytester, world: World, imported: Callable[[], Path], recorded: Path
) -> None:
    """Neither side has prompts: who has all answers already needs none."""
    mine = pytester.path / "mine"
    mine.mkdir()
    for name in ("slot_map.json", "mean_activations.json", "mean_activations.safetensors"):
        shutil.copy(recorded / name, mine)

    pytester.runpytest_inprocess("-m", "parity", *options(world, imported()), f"--fv-candidate-dir={mine}")

    (report,) = reports(pytester)
    found = statuses(report)
    assert [found[key] for key in CHECK_KEYS[:4]] == ["NOT_HELD", "PASS", "PASS", "NOT_PROVIDED"]
    assert report["overall_status"] == "FAIL"


def test_with_fewer_trials_it_is_partial_too(
    pytester: pytest.Pytester, world: World, imported: Callable[[], Path]
) -> None:
    result = pytester.runpytest_inprocess("-m", "parity", *options(world, imported()), "--fv-max-trials=1")

    assert result.ret == pytest.ExitCode.OK
    assert reports(pytester)[0]["overall_status"] == "PARTIAL"


@pytest.mark.slow
def test_on_workers_it_is_partial_too(pytester: pytest.Pytester, world: World, imported: Callable[[], Path]) -> None:
    result = pytester.runpytest_subprocess("-m", "parity", "-n", "1", *options(world, imported()))

    assert result.ret == pytest.ExitCode.OK
    assert reports(pytester)[0]["overall_status"] == "PARTIAL"


# ---------------------------------------------------------------- the commands


def test_the_commands_export_and_import(
    world: World,
    recorded: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*words: object) -> int:
        monkeypatch.setattr(sys, "argv", ["fvparity", "golden", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert run("export", recorded, "--to", tmp_path / "results") == 0
    (folder,) = (tmp_path / "results" / "pairs").iterdir()
    assert str(folder / MEANS) in capsys.readouterr().out
    named = [folder, "--model", world.model, "--trials", world.trials[0], "--root", tmp_path / "golden"]
    assert run("import", *named, "--edit-layer", 1, "--top-heads", 3) == 0
    assert "a run against it is PARTIAL at best" in capsys.readouterr().out
    assert run("import", *named, "--edit-layer", 1, "--top-heads", 3) == 2
    assert "there is a golden already" in capsys.readouterr().err
    assert run("import", *named, "--edit-layer", 77) == 2
    assert "layer" in capsys.readouterr().err
