"""The plans' command lines run as they are written, in a folder that `fvparity init` made, and their criteria can fail."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fvcore.formats import read_yaml
from tests.late import RUNNING

if RUNNING:
    from fvcore.cli import app
    from fvcore.formats import FormatError, read_json, write_json
    from pytest_fvparity.plans import criteria, page
    from pytest_fvparity.plans.call import read_flags, translated
    from pytest_fvparity.plans.init import PLANS, README, init
    from pytest_fvparity.plans.table import PlanUsage, scripts
    from tests.pytest_fvparity.stand_in import plant as plant_reference


TESTS = Path(__file__).parents[1]
BLOCKS: dict[str, list[list[str]]] = read_yaml(TESTS / "plans_blocks.yaml")
ID = "fixed_trials_tiny_antonym_t10_s10_seed0_tiny_llama"
VALUES = {
    "model": "tiny-llama",
    "spec": "llama3",
    "python": sys.executable,
    "dataset": "tiny_antonym",
    "id": ID,
    "trials": f"datasets/fixed_trials/{ID}.json",
    "device": "cpu",
    "layer": "1",
    "q": "Q3",
    "run": "results_fv/relation_qwise/relationA_ex/Q3",
}
LAYERS = 6


def run(folder: Path, words: list[str], **values: str) -> subprocess.CompletedProcess[str]:
    filled = [word.format(**VALUES | values) for word in words]
    return subprocess.run([sys.executable, *filled], cwd=folder, capture_output=True, text=True, check=False)


def passes(folder: Path, block: str, **values: str) -> str:
    """What the commands of a block print; each ends with status 0 and has no criterion that is not met."""
    printed = ""
    for words in BLOCKS[block]:
        done = run(folder, words, **values)
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout
    assert "PASS " in printed
    assert not re.search(r"^FAIL ", printed, re.MULTILINE)
    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plans")
    init(path)
    return path


@pytest.fixture(scope="module")
def m0(folder: Path) -> str:
    return passes(folder, "M0")


def test_a_folder_has_what_the_plans_name(folder: Path) -> None:
    assert all((folder / name).is_file() for name in scripts())
    assert (folder / "datasets/antonym/raw/antonym.json").is_file()
    assert (folder / "datasets/relation/relationA_ex.csv").is_file()
    assert max(len((folder / name).read_text().splitlines()) for name in scripts()) <= 15


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    own = tmp_path / "scripts" / "run_parity_suite.py"
    own.parent.mkdir()
    own.write_text("mine\n")
    with pytest.raises(
        FormatError, match=r"run_parity_suite\.py is there and holds something else; nothing was written"
    ):
        init(tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [own]
    own.unlink()
    first = init(tmp_path)
    assert init(tmp_path) == first  # once more, and it is all the same


def test_one_plan_alone_has_its_own_scripts(tmp_path: Path) -> None:
    init(tmp_path, ["relation"])
    written = {path.name for path in (tmp_path / "scripts").iterdir()}
    assert "run_stepE_topk_fv_and_eval.py" in written
    assert "run_m1_golden_artifacts.py" not in written
    assert not (tmp_path / "src").exists()


def test_the_plans_modules_are_fvcores(folder: Path) -> None:
    words = """
        from fv import adapters, fv, hf_loader, intervene, model_config, model_spec
        lm = hf_loader.load("tiny-llama")
        spec = model_spec.get_model_spec("llama3")
        blocks = adapters.resolve_blocks(lm.hf, spec)
        assert adapters.resolve_attn(lm.hf, spec, 2) is blocks[2].self_attn
        assert adapters.resolve_out_proj(lm.hf, spec, 2) is blocks[2].self_attn.o_proj
        assert (spec.blocks_path, spec.attn_path_in_block, spec.out_proj_path_in_attn) == spec.paths
        assert spec.prepend_bos is None and callable(model_config.head_widths)
        assert "out_proj" in str(hf_loader.diagnostics(lm))
        assert callable(fv.function_vector) and callable(intervene.add_to_residual)
    """
    code = "\n".join(line.strip() for line in words.splitlines())
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_m0(m0: str, folder: Path) -> None:
    shipped = Path("datasets/fixed_trials", f"{ID}.json")
    assert (folder / shipped).read_bytes() == (TESTS.parent / shipped).read_bytes()
    assert "first_token_id == answer_ids_first in 10 of 10 trials" in m0
    assert re.search(r"PASS prompt_boundary: mismatch_count 0 of [1-9]\d* values", m0)
    assert re.search(r"PASS slot_map: mismatch_count 0 of [1-9]\d* values", m0)


@pytest.mark.slow
def test_m1_and_m2(m0: str, folder: Path) -> None:
    printed = passes(folder, "M1")
    assert "PASS mean activations rank 4" in printed
    assert "PASS indirect effect (last token) rank 3" in printed
    assert "suite PASS, mismatch_count of each stage: prompt_boundary 0, slot_map 0" in passes(folder, "M2")


@pytest.mark.slow
def test_the_trials_of_antonym_itself_are_made_and_verified(folder: Path) -> None:
    """No reference and no golden is needed for these; what compares with the reference says that it has none."""
    words = {"dataset": "antonym", "id": "fixed_antonym", "trials": "datasets/fixed_trials/fixed_antonym.json"}
    make, prompts, _, verify = BLOCKS["M0"]
    assert run(folder, make, **words).returncode == 0
    assert "mismatch_count 0" in run(folder, verify, **words).stdout
    refused = run(folder, prompts, **words)
    assert refused.returncode != 0
    assert "NO_GOLDEN" in refused.stdout


@pytest.mark.slow
def test_the_model_spec_plan(m0: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(folder, BLOCKS["smoke"][0]).returncode == 0
    assert (folder / "artifacts/model_spec_audit/resolver_smoke_llama.json").is_file()
    refused = run(folder, BLOCKS["reduced"][0])
    assert refused.returncode == 2
    assert "--fv-src" in refused.stderr
    monkeypatch.setenv("FV_SRC", str(plant_reference(folder / "reference")))
    passes(folder, "reduced")


@pytest.mark.slow
def test_the_relation_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "25 trials, 25 asked for" in passes(folder, "StepD")
    passes(folder, "heatmap")
    assert "20 heads in the vector" in passes(folder, "StepE")
    assert "1 of 6 layers; missing 1, 2, 3, 4, 5" in passes(folder, "Step6", layer="0")
    monkeypatch.chdir(folder)
    for layer in range(1, LAYERS - 1):  # our command alone, in this process
        script, *flags = (word.format(**VALUES | {"layer": str(layer)}) for word in BLOCKS["Step6"][0])
        (_, *words), _ = translated(*way_of(script, *flags))
        assert CliRunner().invoke(app, words).exit_code == 0
    assert "6 of 6 layers: all of them" in passes(folder, "Step6", layer=str(LAYERS - 1))
    prompts = [
        one["corrupted_prompt_str"]
        for one in read_json(folder / VALUES["run"] / "artifacts/sampled_trials_zeroshot.json")["trials"]
    ]
    assert all(re.fullmatch(r"Q: .*\nA:", prompt) for prompt in prompts)


def way_of(name: str, *words: str) -> tuple[Any, Mapping[str, str]]:
    script = scripts()[name]
    given = read_flags(name, script, words)
    return script.way(given), given


SUITE = ("--fixed_trials_path", "nowhere.json", "--model_name", "tiny-llama")


@pytest.mark.parametrize(
    ("name", "words", "says"),
    [
        ("scripts/run_parity_suite.py", (*SUITE, "--seed", "1"), r"--seed 1: profile antonym-lock locks seed at 0"),
        ("scripts/run_parity_suite.py", (*SUITE, "--edit_layers", "9"), r"no flag --edit_layers; did you mean --edit_layer\?"),
        ("scripts/run_parity_suite.py", (*SUITE, "9"), "expected a flag"),
        ("scripts/run_parity_suite.py", ("--model_name", "tiny-llama"), "--fixed_trials_path is missing"),
        ("src/make_fixed_trials.py", ("--verify", "true", "--out_path", "x", "--seed", "0"), "--seed does not go with --verify"),
        ("scripts/plot_stepD_aie_heatmap.py", ("--in_dir", "x/artefacts"), r"--in_dir: expected \.\.\./artifacts, found 'x/artefacts'"),
        ("scripts/verify_slot_parity_against_src.py", ("--fixed_trials_path", "x", "--tokenizer_name", "y", "--mode", "plain"), "--mode: expected one of corrupted, clean, found 'plain'"),
    ],
)  # fmt: skip
def test_a_flag_that_cannot_be_taken_is_named(name: str, words: tuple[str, ...], says: str) -> None:
    with pytest.raises(PlanUsage, match=says):
        translated(*way_of(name, *words))


def test_a_folder_of_another_q_id_is_refused() -> None:
    words = ("--model", "m", "--relation_csv_path", "r.csv", "--relation_q_list", "Q3", "--out_base_dir", "runs/Q5")
    with pytest.raises(PlanUsage, match=r"--out_base_dir: expected \.\.\./Q3, found 'runs/Q5'"):
        translated(*way_of("scripts/run_stepD_aie_head_sweep.py", *words))


@pytest.mark.slow
def test_what_we_refuse_names_the_plans_flag(folder: Path) -> None:
    """The sentence is our command's; the flag in it is the plan's."""
    words = BLOCKS["smoke"][0][:-1]
    refused = run(folder, [*words, "5bit"])
    assert refused.returncode != 0
    assert "--quant" in refused.stdout + refused.stderr
    wrong = run(folder, [*BLOCKS["StepD"][0], "--layers", "0,9"])
    assert "layer 9 is not in [0, 5] (--layers)" in wrong.stderr
    heads = run(folder, [*BLOCKS["StepD"][0], "--relation_n_demos", "0"])
    assert "--relation_n_demos" in heads.stderr


def test_a_missing_deliverable_fails(tmp_path: Path) -> None:
    met = dict(reversed(one) for one in criteria.files([f"{tmp_path}/{{name}}.pt", f"{tmp_path}/*.csv"], {"name": "x"}))
    assert not any(met.values())
    assert any("x.pt is missing" in text for text in met)


def test_trials_that_are_too_few_or_show_their_query_fail(tmp_path: Path) -> None:
    rows = [{"query_source_index": n, "demo_source_indices": [1, 2]} for n in range(3)]
    write_json(tmp_path / "artifacts" / "sampled_trials.json", {"trials": rows})
    values = {"out_base_dir": str(tmp_path), "relation_n_trials_per_q": "25"}
    assert criteria.of("all_trials_drawn", values) == (False, "3 trials, 25 asked for")
    assert criteria.of("no_query_among_its_demonstrations", values)[0] is False


def test_the_blocks_of_the_readme_are_those_that_are_tested() -> None:
    """Script and flags of every command; values differ where the tests name a small model."""
    text = README.read_text().replace("\\\n", " ")
    written = [shlex.split(line.strip())[1:] for line in text.splitlines() if line.strip().startswith("$PY ")]
    tested = [words for block in BLOCKS.values() for words in block]
    shape = [[word for word in words if word.startswith("--") or word.endswith(".py")] for words in tested]
    assert [[word for word in words if word.startswith("--") or word.endswith(".py")] for words in written] == shape


def test_every_script_and_flag_of_the_blocks_is_in_the_table() -> None:
    for words in (words for block in BLOCKS.values() for words in block):
        script = scripts()[words[0]]
        assert {word[2:] for word in words[1:] if word.startswith("--")} <= set(script.flags)
    assert {words[0] for block in BLOCKS.values() for words in block} == set(scripts())


def test_every_criterion_of_the_table_is_there() -> None:
    named = {name for script in scripts().values() for way in script.ways for name in way.criteria}
    assert named == set(criteria.CRITERIA)


def test_every_line_of_the_plans_is_held_by_a_test() -> None:
    assert set(page.lines()) > set(PLANS)  # and the plans of the two experiments, whose commands are their own
    files: dict[str, str] = {}
    for path in TESTS.rglob("test_*.py"):  # two rooms may have a file of one name
        files[path.name] = files.get(path.name, "") + path.read_text()
    for one in (one for rows in page.lines().values() for one in rows):
        name, _, test = one.test.partition("::")
        assert name in files, one
        assert not test or f"def {test}(" in files[name], one


def test_the_page_has_the_tables_as_they_are() -> None:
    text = (TESTS.parent / "docs/milestones.md").read_text()
    assert page.scripts_markdown() in text
    assert page.renewed(text) == text
    assert page.renewed(text.replace("| 4-6 |", "| 4-7 |")) == text
