"""What goldens and reports of a trials file are filed under: a run's frozen trials all have one name."""

from __future__ import annotations

import shutil
from pathlib import Path

from fvcore.trials import fixed as trials
from fvcore.trials.sampled import read_trials, write
from pytest_fvparity.parity.place import place_of, title_of
from tests.fvcore.test_sampled_trials import FIXED, sampled_of
from tests.late import RUNNING

if RUNNING:
    from fvcore.model import model as models
    from pytest_fvparity.golden.listing import trials_under


def frozen(folder: Path, q_id: str) -> Path:
    path = folder / "pairs" / q_id / "artifacts" / "sampled_trials.json"
    path.parent.mkdir(parents=True)
    write(path, sampled_of(models.load_tokenizer("tiny-llama"), q_id))
    return path


def test_frozen_trials_are_filed_by_what_is_in_them(tmp_path: Path) -> None:
    one, other = (frozen(tmp_path, q_id) for q_id in ("Q1", "Q2"))

    assert place_of(one) == ("relation", "Q1_t4_s3_seed7_tiny_llama")
    assert place_of(other) == ("relation", "Q2_t4_s3_seed7_tiny_llama")
    assert [title_of(path) for path in (one, other)] == ["pairs/Q1", "pairs/Q2"]


def test_a_copy_elsewhere_is_filed_alike(tmp_path: Path) -> None:
    path = frozen(tmp_path, "Q1")
    copy = Path(shutil.copy(path, tmp_path / "sampled_trials.json"))

    assert place_of(copy) == place_of(path)


def test_fixed_trials_are_filed_by_their_name() -> None:
    assert place_of(FIXED) == (None, FIXED.stem)
    assert title_of(FIXED) == FIXED.stem


def test_what_cannot_be_read_keeps_its_name(tmp_path: Path) -> None:
    path = tmp_path / "sampled_trials.json"
    path.write_text("{")
    assert place_of(path) == (None, "sampled_trials")


def test_the_list_of_goldens_knows_frozen_trials(tmp_path: Path) -> None:
    paths = [frozen(tmp_path, q_id) for q_id in ("Q1", "Q2")]
    shutil.copy(FIXED, tmp_path / FIXED.name)

    found = trials_under([tmp_path])
    assert found == {
        FIXED.stem: {trials.read(FIXED).sha256},
        **{read_trials(path).id: {read_trials(path).sha256} for path in paths},
    }
