"""`fvcore trials make` and `fvcore trials verify`, from the command line to files, output and exit status."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from fvcore import __version__, cli
from fvcore.embedded.random_models import PAIRS, toy_tokenizer
from fvcore.trials import fixed as trials


@dataclass
class Run:
    """What one call of the program did."""

    status: int
    out: str
    err: str


@dataclass
class World:
    """A folder with a raw dataset and tokenizers, and the program run in it."""

    folder: Path
    capsys: pytest.CaptureFixture[str]
    monkeypatch: pytest.MonkeyPatch

    def __call__(self, *arguments: str) -> Run:
        self.monkeypatch.setattr(sys, "argv", ["fvcore", *arguments])
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        streams = self.capsys.readouterr()
        code = stopped.value.code
        return Run(code if isinstance(code, int) else int(code is not None), streams.out, streams.err)

    def make(self, *arguments: str) -> Run:
        return self("trials", "make", "--dataset-json", "raw/pairs.json", *arguments)

    def edit(self, path: str, change: Callable[[Any], None]) -> None:
        value = json.loads((self.folder / path).read_text())
        change(value)
        (self.folder / path).write_text(json.dumps(value, indent=2))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    for kind in ("bos", "gpt2", "eos"):
        toy_tokenizer(kind).save_pretrained(folder / f"Toy-{kind}")
    (folder / "raw").mkdir()
    rows = [{"input": a, "output": b} for a, b in PAIRS]
    (folder / "raw" / "pairs.json").write_text(json.dumps(rows))
    return folder


@pytest.fixture
def world(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> World:
    for entry in saved.iterdir():
        (tmp_path / entry.name).symlink_to(entry)
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, capsys, monkeypatch)


@pytest.fixture
def made(world: World) -> str:
    """A trials file of four trials of three shots."""
    run = world.make("--tokenizer", "Toy-bos", "--n-trials", "4", "--n-shots", "3", "--out", "trials.json")
    assert run.status == 0, run.err
    return "trials.json"


def rewrite(world: World, change: Callable[[Any], Any]) -> None:
    """The raw dataset with other rows, a file of its own."""
    rows = json.loads((world.folder / "raw" / "pairs.json").read_text())
    (world.folder / "raw").unlink()
    (world.folder / "raw").mkdir()
    (world.folder / "raw" / "pairs.json").write_text(json.dumps([change(row) for row in rows]))


# ---------------------------------------------------------------- make


def test_empty_answers_are_refused_by_their_row_or_left_out(world: World) -> None:
    rewrite(world, lambda row: row | ({"output": ""} if row["input"] in {"hot", "up", "near"} else {}))
    asked = ("--tokenizer", "Toy-bos", "--n-trials", "3", "--n-shots", "3", "--out", "trials.json")
    refused = world.make(*asked)
    assert refused.status == 2
    assert "raw/pairs.json: row 0 has no output (3 of 24 rows lack one)" in refused.err
    assert not (world.folder / "trials.json").exists()

    made = world.make(*asked, "--without-empty-rows")
    assert (made.status, "from 21 rows" in made.out) == (0, True)
    assert world("trials", "verify", "trials.json", "--without-empty-rows").status == 0
    assert "row 0 has no output" in world("trials", "verify", "trials.json").err


def test_trials_hold_no_path_of_the_machine_they_were_made_on(world: World, saved: Path) -> None:
    raw, tokenizer = world.folder / "inside.json", saved / "Toy-bos"
    raw.write_bytes((saved / "raw" / "pairs.json").read_bytes())
    asked = ("--dataset", str(raw), "--tokenizer", str(tokenizer), "--n-trials", "2", "--n-shots", "3")
    assert world("trials", "make", *asked, "--out", "trials.json").status == 0

    text = (world.folder / "trials.json").read_text()
    assert str(world.folder) not in text
    assert str(saved) not in text
    meta = json.loads(text)["meta"]
    assert (meta["dataset_json"], meta["model_name_for_tokenizer"]) == ("inside.json", "Toy-bos")
    (world.folder / "Toy-bos").unlink()
    assert "--tokenizer DIR" in world("trials", "verify", "trials.json").err
    assert world("trials", "verify", "trials.json", "--tokenizer", str(tokenizer)).status == 0


def test_made_trials_go_to_their_folder_under_their_full_name(world: World) -> None:
    run = world.make("--tokenizer", "Toy-bos", "--n-trials", "2", "--n-shots", "3", "--seed", "5")
    name = "datasets/fixed_trials/fixed_trials_pairs_t2_s3_seed5_toy_bos.json"
    assert (run.status, run.err) == (0, "")
    assert run.out == f"wrote {name}: 2 trials of 3 shots from 24 rows, seed 5\n"
    fixed = trials.read(world.folder / name)
    assert (fixed.meta.dataset_json, fixed.meta.model_name_for_tokenizer) == ("raw/pairs.json", "Toy-bos")
    assert (fixed.meta.seed, fixed.meta.n_shots, len(fixed.trials)) == (5, 3, 2)


def test_made_trials_may_go_to_a_folder_or_a_file(world: World) -> None:
    settings = ("--tokenizer", "Toy-bos", "--n-trials", "2", "--n-shots", "3")
    assert world.make(*settings, "--out", "here").status == world.make(*settings, "--out", "there/x.json").status == 0
    one, other = world.folder / "here" / "fixed_trials_pairs_t2_s3_seed0_toy_bos.json", world.folder / "there/x.json"
    assert one.read_bytes() == other.read_bytes()


def test_bytes_are_the_same_every_time_and_of_another_seed_others(world: World) -> None:
    for out, seed in (("a.json", "0"), ("b.json", "0"), ("c.json", "1")):
        world.make("--tokenizer", "Toy-bos", "--n-shots", "3", "--seed", seed, "--out", out)
    a, b, c = ((world.folder / f"{name}.json").read_bytes() for name in "abc")
    assert a == b != c
    assert a.isascii()
    assert not a.endswith(b"\n")


def test_a_file_made_by_the_program_is_the_one_the_library_samples(world: World, made: str) -> None:
    fixed = trials.read(world.folder / made)
    assert trials.same_draws(fixed.file, trials.read_pairs(world.folder / "raw" / "pairs.json")) == []
    assert trials.text_of(fixed.file) == (world.folder / made).read_text()


@pytest.mark.parametrize(("tokenizer", "adds_bos"), [("Toy-bos", True), ("Toy-gpt2", False)])
def test_the_bos_flag_is_measured_when_it_is_not_given(world: World, tokenizer: str, adds_bos: bool) -> None:
    settings = ("--tokenizer", tokenizer, "--n-shots", "3", "--n-trials", "2")
    flag = "--prepend-bos" if adds_bos else "--no-prepend-bos"
    assert world.make(*settings, "--out", "a.json").status == world.make(*settings, flag, "--out", "b.json").status == 0
    assert (world.folder / "a.json").read_bytes() == (world.folder / "b.json").read_bytes()
    assert trials.read(world.folder / "a.json").meta.model_prepend_bos is adds_bos


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--tokenizer", "Toy-bos", "--n-shots", "17"), "24 rows give 16 training and 3 validation rows; 17 shots need"),
        (("--tokenizer", "Toy-bos", "--no-prepend-bos"), "the tokenizer adds BOS (ids of 'Q: a': [1, "),
        (("--tokenizer", "Toy-gpt2", "--prepend-bos"), "the tokenizer adds no BOS (ids of 'Q: a': ["),
        (("--tokenizer", "Toy-eos"), "the tokenizer appends its end-of-text token"),
        (("--tokenizer", "nowhere"), "no model 'nowhere': there is no directory "),
        (("--tokenizer", "Toy-bos", "--prepend-bos-token-used"), "a BOS string in the prompt text is labelled"),
        (("--tokenizer", "Toy-bos", "--dataset-json", "none.json"), "none.json: no such file"),
        (("--tokenizer", "Toy-bos", "--dataset-json", "Toy-bos/tokenizer_config.json"), "expected a list of {input, output} rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_one_line_and_no_file(world: World, arguments: tuple[str, ...], message: str) -> None:
    run = world.make(*arguments, "--out", "new.json")
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith("fvcore: ")
    assert message in run.err
    assert run.err.count("\n") == 1
    assert "Traceback" not in run.err
    assert not (world.folder / "new.json").exists()


@pytest.mark.parametrize(
    "arguments", [("--n-trials", "0"), ("--n-shots", "-1"), ("--seed", "-1"), ("--n-shots", "many")]
)
def test_a_number_out_of_range_is_a_usage_error(world: World, arguments: tuple[str, ...]) -> None:
    run = world.make("--tokenizer", "Toy-bos", *arguments)
    assert run.status == 2
    assert arguments[0] in run.err


# ---------------------------------------------------------------- verify


def test_a_sound_file_is_verified_with_its_own_tokenizer_and_dataset(world: World, made: str) -> None:
    run = world("trials", "verify", made)
    assert (run.status, run.err) == (0, "")
    assert run.out == (
        "trials.json: 4 of 4 trials checked with Toy-bos, sampled again from raw/pairs.json; mismatch_count 0\n"
    )


def test_without_the_dataset_the_draws_are_not_checked_and_that_is_said(world: World, made: str) -> None:
    (world.folder / "raw").unlink()
    run = world("trials", "verify", made)
    assert run.status == 0
    assert "not sampled again (the raw dataset is not at hand; --dataset)" in run.out


def test_a_changed_target_is_found(world: World, made: str) -> None:
    def change(value: Any) -> None:
        record = value["trials"][2]
        record["first_token_id"] = record["target_first_token_id"] = record["answer_ids"][0] = 5

    world.edit(made, change)
    run = world("trials", "verify", made)
    assert run.status == 1
    lines = run.out.splitlines()
    assert lines[0].startswith("trial 2:2: answer_ids [5")
    assert lines[1].startswith("trial 2:2: target_first_token_id 5, the tokenizer gives ")
    assert lines[2].endswith("mismatch_count 2")
    assert len(lines) == 3


def test_an_empty_answer_in_a_file_is_found_by_its_row(world: World, made: str) -> None:
    def change(value: Any) -> None:
        value["trials"][1]["demos_clean"][2]["output"] = " "

    world.edit(made, change)
    row = trials.read(world.folder / made).file
    drawn = row.trials[1].demo_indices_in_train
    assert row.splits is not None
    assert drawn is not None
    run = world("trials", "verify", made)
    assert run.status == 1
    assert (
        f"trial 1:1: demonstration 3 (row {row.splits.train_indices[drawn[2]]} of the dataset) has no output" in run.out
    )


def test_what_has_no_slots_is_not_passed(world: World) -> None:
    rewrite(world, lambda row: row | {"input": "?"})  # its token takes the line end with it
    assert world.make("--tokenizer", "Toy-bos", "--n-trials", "1", "--n-shots", "2", "--out", "odd.json").status == 0
    run = world("trials", "verify", "odd.json")
    assert run.status == 1
    assert "trial 0:0, clean prompt: " in run.out
    assert "no token is left of demonstration_1_token" in run.out


def test_changed_draws_are_found(world: World, made: str) -> None:
    world.edit(made, lambda value: value["trials"][1].update(query_index_in_valid=99))
    run = world("trials", "verify", made)
    assert run.status == 1
    assert run.out.splitlines()[0] == "trial 1: query_index_in_valid differs from a fresh sample with seed 0"
    other = [{"input": b, "output": a} for a, b in PAIRS]
    (world.folder / "other.json").write_text(json.dumps(other))
    assert world("trials", "verify", made, "--dataset-json", "other.json").status == 1


def test_only_the_first_trials_are_checked_when_asked(world: World, made: str) -> None:
    world.edit(made, lambda value: value["trials"][2].update(target_str=" zzz"))
    one, three = (world("trials", "verify", made, "--first", n) for n in ("2", "3"))
    assert (one.status, three.status) == (0, 1)
    assert "2 of 4 trials checked" in one.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.json",), "none.json: no such file"),
        (("trials.json", "--first", "5"), "trials.json: --first 5, but the file holds 4 trials"),
        (("trials.json", "--tokenizer", "Toy-gpt2"), "the tokenizer adds no BOS"),
        (("trials.json", "--tokenizer", "nowhere"), "no model 'nowhere': there is no directory "),
        (("trials.json", "--dataset-json", "none.json"), "none.json: no such file"),
        (("raw/pairs.json",), "raw/pairs.json: trial 0: missing key 'trial_id'"),
    ],
)
def test_what_cannot_be_verified_is_one_line(world: World, made: str, arguments: tuple[str, ...], message: str) -> None:
    run = world("trials", "verify", *arguments)
    assert (run.status, run.out) == (2, "")
    assert run.err.startswith("fvcore: ")
    assert message in run.err
    assert run.err.count("\n") == 1


def test_text_in_brackets_is_printed_as_it_is(world: World, made: str) -> None:
    (world.folder / made).rename(world.folder / "[red]trials.json")
    run = world("trials", "verify", "[red]trials.json")
    assert run.out.startswith("[red]trials.json: 4 of 4 trials")


# ---------------------------------------------------------------- the program


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(("--help",), "trials"), (("trials", "--help"), "verify"), (("trials", "make", "--help"), "--n-shots")],
)
def test_help_names_what_can_be_asked_for(world: World, arguments: tuple[str, ...], named: str) -> None:
    run = world(*arguments)
    assert run.status == 0
    assert named in run.out


def test_help_loads_no_model_library(pytester: pytest.Pytester) -> None:
    code = (
        "import sys, fvcore.cli; sys.argv = ['fvcore', '--help']\n"
        "try: fvcore.cli.main()\n"
        "finally: print('loaded:', sorted({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    pytester.run(sys.executable, "-c", code).stdout.fnmatch_lines(["*Usage:*", "loaded: [[][]]"])


def test_the_library_has_a_version() -> None:
    assert __version__.count(".") == 2
