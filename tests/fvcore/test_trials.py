"""Fixed trials: the committed draws, the bytes of the file, what a reader accepts and what it refuses."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.random_models import PAIRS
from fvcore.formats import FormatError, sha256, sha256_file
from fvcore.prompts import PromptTemplate
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import Meta, TemplatePart, TrialsError, TrialsFile, WordPair

WORDS = [WordPair(input=a, output=b) for a, b in PAIRS]

# Trials 0-2 of the original project's antonym file: demonstrations and query, as positions inside the splits.
DEMOS = [
    (1419, 1364, 1063, 854, 451, 68, 27, 514, 293, 126),
    (903, 500, 208, 13, 8, 804, 134, 675, 707, 47),
    (966, 878, 1206, 628, 519, 1205, 1413, 708, 225, 814),
]
QUERIES = [201, 173, 155]


def made(n_trials: int = 4, n_shots: int = 3, seed: int = 0, pairs: list[WordPair] = WORDS, **meta: Any) -> TrialsFile:
    """A trials file whose answer ids are character codes, and whose prompts have the template's shape."""

    def prompt(demos: Any, query: str) -> str:
        return "".join(f"Q:{demo.input}\nA:{demo.output}\n\n" for demo in demos) + f"Q:{query}\nA:"

    settings = Meta(dataset_json="datasets/pairs/raw/pairs.json", seed=seed, n_trials=n_trials, n_shots=n_shots, **meta)
    return trials.sample(pairs, settings, lambda prompt, answer: [ord(c) for c in answer], prompt)


@pytest.fixture
def value() -> Any:
    """A whole trials file as JSON gives it, free to be changed."""
    return json.loads(trials.text_of(made()))


# ---------------------------------------------------------------- the draws


def test_the_split_of_2398_rows_is_the_committed_one() -> None:
    splits = trials.split(2398, 0.3, 0)
    assert (splits.train_indices[:5], splits.train_indices[-3:]) == ([1521, 2214, 1918, 2070, 234], [763, 835, 1653])
    assert (splits.valid_indices[:5], splits.valid_indices[-3:]) == ([735, 118, 1455, 2223, 1840], [1570, 2165, 1458])
    assert (splits.test_indices[:5], splits.test_indices[-3:]) == ([2199, 2235, 478, 414, 1174], [648, 532, 1000])
    assert [len(part) for part in (splits.train_indices, splits.valid_indices, splits.test_indices)] == [1678, 216, 504]


def test_a_split_hands_out_every_row_once() -> None:
    splits = trials.split(101, 0.3, 7)
    assert sorted(splits.train_indices + splits.valid_indices + splits.test_indices) == list(range(101))


@pytest.mark.parametrize(("n_rows", "part", "seed"), [(24, 0.3, 0), (101, 0.3, 3), (57, 0.25, 42), (10, 0.5, 1)])
def test_a_split_is_scikit_learns_twice(n_rows: int, part: float, seed: int) -> None:
    from sklearn.model_selection import train_test_split

    train, held_out = train_test_split(range(n_rows), test_size=part, random_state=seed)
    test, valid = train_test_split(held_out, test_size=part, random_state=seed)
    splits = trials.split(n_rows, part, seed)
    assert (splits.train_indices, splits.valid_indices, splits.test_indices) == (train, valid, test)


def test_the_draws_of_the_first_trials_are_the_committed_ones() -> None:
    draws = trials.draws(1678, 216, 10, 10, 0)
    assert [draw.demos for draw in draws[:3]] == DEMOS
    assert [draw.query for draw in draws[:3]] == QUERIES
    assert len(draws) == 10


def test_labels_are_permuted_without_avoiding_fixed_points() -> None:
    fixed_points = [sum(i == j for i, j in enumerate(d.label_order)) for d in trials.draws(1678, 216, 10, 10, 0)]
    assert fixed_points == [1, 0, 3, 1, 0, 0, 4, 1, 1, 1]


def test_a_shorter_file_is_the_beginning_of_a_longer_one() -> None:
    five, ten = made(n_trials=5), made(n_trials=10)
    assert five.trials == ten.trials[:5]
    assert five.splits == ten.splits
    assert trials.file_name(five.meta) == trials.file_name(ten.meta).replace("_t10_", "_t5_")


def test_words_get_one_leading_space_and_demonstrations_come_from_the_training_rows() -> None:
    file = made()
    assert file.splits is not None
    trial = file.trials[2]
    assert trial.demo_indices_in_train is not None
    assert trial.query_index_in_valid is not None
    rows = [WORDS[file.splits.train_indices[i]] for i in trial.demo_indices_in_train]
    query = WORDS[file.splits.valid_indices[trial.query_index_in_valid]]
    assert [(d.input, d.output) for d in trial.demos_clean] == [(f" {r.input}", f" {r.output}") for r in rows]
    assert (trial.query.input, trial.query.output) == (f" {query.input}", f" {query.output}")


def test_corruption_moves_outputs_and_leaves_inputs() -> None:
    moved = 0
    for trial in made(n_trials=10).trials:
        assert [d.input for d in trial.demos_corrupted] == [d.input for d in trial.demos_clean]
        assert sorted(d.output for d in trial.demos_corrupted) == sorted(d.output for d in trial.demos_clean)
        moved += trial.demos_corrupted != trial.demos_clean
    assert moved > 5


@pytest.mark.parametrize("n_shots", [17, 400])
def test_more_shots_than_training_rows_is_refused(n_shots: int) -> None:
    with pytest.raises(TrialsError, match=rf"24 rows give 16 training and 3 validation rows; {n_shots} shots need"):
        made(n_shots=n_shots)


def test_as_many_shots_as_training_rows_are_enough() -> None:
    assert len(set(made(n_shots=16).trials[0].demo_indices_in_train or [])) == 16


def test_no_trials_are_refused() -> None:
    with pytest.raises(TrialsError, match="n_trials is 0"):
        made(n_trials=0)


def test_the_antonym_trials_are_the_committed_ones(pytestconfig: pytest.Config) -> None:
    checkout = pytestconfig.getoption("fv_src") or pytestconfig.getini("fv_src")
    if not checkout:
        pytest.skip("needs a checkout of the reference for its antonym data: --fv-src PATH")
    raw = Path(checkout, "dataset_files", "abstractive", "antonym.json")
    assert sha256_file(raw) == "ba66e8e399944b557251b11a37b11f9ba7a50f0a57286f7021a8a7b26b469e8d"

    pairs = trials.read_pairs(raw)
    assert len(pairs) == 2398
    file = made(n_trials=10, n_shots=10, pairs=pairs)
    assert file.splits == trials.split(2398, 0.3, 0)
    assert [tuple(t.demo_indices_in_train or ()) for t in file.trials[:3]] == DEMOS
    queries = [(t.query.input, t.query.output) for t in file.trials[:3]]
    assert queries == [(" dusty", " clean"), (" exclude", " include"), (" comedy", " tragedy")]

    first = file.trials[0]
    words = [(d.input.strip(), d.output.strip()) for d in first.demos_clean]
    assert words[:3] == [("interrogation", "explanation"), ("stranger", "familiar"), ("incompetence", "competence")]
    assert words[-3:] == [("idiot", "genius"), ("retired", "employed"), ("analogy", "discrepancy")]
    assert " ".join(d.output.strip() for d in first.demos_corrupted) == (
        "official genius adult competence dull familiar protagonist discrepancy employed explanation"
    )
    assert first.clean_prompt_str.startswith("Q: interrogation\nA: explanation\n\nQ: stranger\nA: familiar\n\n")
    assert first.clean_prompt_str.endswith("Q: analogy\nA: discrepancy\n\nQ: dusty\nA:")
    assert first.corrupted_prompt_str.startswith("Q: interrogation\nA: official\n\nQ: stranger\nA: genius\n\n")

    # With the first answer tokens GPT-2 gives, the whole file is the committed one, byte for byte.
    answers = iter([3424, 2291, 13574, 7786, 9320, 3424, 22160, 2219, 34624, 47906])
    meta = trials.Meta(dataset_json="datasets/antonym/raw/antonym.json")
    template = PromptTemplate(meta.prefixes, meta.separators)
    file = trials.sample(pairs, meta, lambda prompt, answer: [next(answers)], template.text)
    digest = sha256(trials.text_of(file).encode())
    assert digest == "deaca5eea41fce3aa4f99ff976687ea2171424f3e977ec99737a45af9b698e27"


# ---------------------------------------------------------------- the bytes


def test_reading_and_writing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    trials.write(first, made())
    trials.write(second, trials.read(first).file)
    assert second.read_bytes() == first.read_bytes()


def test_the_file_is_indented_ascii_without_a_final_newline(tmp_path: Path) -> None:
    path = tmp_path / "trials.json"
    pairs = [WordPair(input=p.input, output=f"{p.output}\u00e9") for p in WORDS]
    trials.write(path, made(pairs=pairs))
    data = path.read_bytes()
    assert data.isascii()
    assert b"\\u00e9" in data
    assert b"\r" not in data
    assert data == json.dumps(json.loads(data), indent=2).encode()


def test_keys_stand_in_the_order_of_the_format(value: Any) -> None:
    assert list(value) == ["meta", "splits", "trials"]
    assert " ".join(value["meta"]) == (
        "dataset_json seed n_trials n_shots test_split prefixes separators model_name_for_tokenizer "
        "model_prepend_bos prepend_bos_token_used"
    )
    assert list(value["splits"]) == ["train_indices", "valid_indices", "test_indices"]
    assert " ".join(value["trials"][0]) == (
        "trial_id demo_indices_in_train query_index_in_valid demos_clean demos_corrupted query prompt_data_clean "
        "prompt_data_corrupted clean_prompt_str corrupted_prompt_str target_str answer_ids first_token_id "
        "target_first_token_id"
    )
    data = value["trials"][0]["prompt_data_corrupted"]
    assert list(data) == ["instructions", "separators", "prefixes", "query_target", "examples"]
    assert list(data["prefixes"]) == list(data["separators"]) == ["input", "output", "instructions"]
    assert data["examples"] == value["trials"][0]["demos_corrupted"]
    assert value["trials"][0]["prompt_data_clean"]["examples"] == value["trials"][0]["demos_clean"]


def test_a_file_is_known_by_its_stem_its_digest_and_its_dataset(tmp_path: Path) -> None:
    path = tmp_path / "fixed_trials_pairs_t4.json"
    trials.write(path, made())
    fixed = trials.read(path)
    assert (fixed.id, fixed.sha256, fixed.dataset) == ("fixed_trials_pairs_t4", sha256_file(path), "pairs")
    assert [trial.key for trial in fixed.trials] == ["0:0", "1:1", "2:2", "3:3"]


@pytest.mark.parametrize(
    ("name", "tag"),
    [
        ("gpt2", "gpt2"),
        ("meta-llama/Llama-3.1-8B", "llama_3_1_8b"),
        ("some/where/Llama-3.1-8B/", "llama_3_1_8b"),
        ("EleutherAI/gpt-j-6b", "gpt_j_6b"),
        ("odd--name__v2.", "odd_name_v2"),
    ],
)
def test_a_model_tag_is_the_last_part_of_its_name_in_snake_case(name: str, tag: str) -> None:
    assert trials.model_tag(name) == tag


def test_the_file_name_says_dataset_sizes_seed_and_model() -> None:
    meta = Meta(
        dataset_json="a/antonym.json", n_trials=5, n_shots=10, seed=3, model_name_for_tokenizer="x/Llama-3.1-8B"
    )
    assert trials.file_name(meta) == "fixed_trials_antonym_t5_s10_seed3_llama_3_1_8b.json"


# ---------------------------------------------------------------- what a reader accepts


def test_missing_answer_ids_are_accepted(value: Any) -> None:
    for record in value["trials"]:
        del record["answer_ids"]
    file = trials.parse(value, "x")
    assert file.trials[0].answer_ids is None
    assert file.trials[0].target_first_token_id == ord(" ")


def test_target_id_is_an_alias(value: Any) -> None:
    for record in value["trials"]:
        record["target_id"] = record.pop("target_first_token_id")
    assert trials.parse(value, "x") == made()


def test_a_bare_list_is_the_trials_with_their_own_number_of_shots(value: Any) -> None:
    file = trials.parse(value["trials"], "x")
    assert file.trials == made().trials
    assert (file.meta.n_shots, file.meta.n_trials) == (3, 4)
    assert file.splits is None


def test_a_bare_list_has_the_template_of_its_trials(value: Any) -> None:
    prefixes = {"input": "In:", "output": "Out:", "instructions": ""}
    for record in value["trials"]:
        for regime in ("clean", "corrupted"):
            record[f"prompt_data_{regime}"]["prefixes"] = prefixes
    file = trials.parse(value["trials"], "x")
    assert file.meta.prefixes == TemplatePart(**prefixes)


def test_the_first_of_several_answers_counts(value: Any) -> None:
    record = value["trials"][1]
    query = record["query"]
    record["query"] = {"input": [query["input"]], "output": [[query["output"], " other"], " third"]}
    record["demos_clean"][0]["output"] = [record["demos_clean"][0]["output"], " other"]
    assert trials.parse(value, "x") == made()


def test_a_missing_bos_flag_means_false(value: Any) -> None:
    del value["meta"]["prepend_bos_token_used"]
    assert trials.parse(value, "x").meta.prepend_bos_token_used is False


# ---------------------------------------------------------------- what a reader refuses


@pytest.mark.parametrize(
    "key",
    [
        "trial_id",
        "demos_clean",
        "demos_corrupted",
        "query",
        "prompt_data_clean",
        "prompt_data_corrupted",
        "clean_prompt_str",
        "corrupted_prompt_str",
        "target_str",
        "target_first_token_id",
    ],
)
def test_a_missing_key_is_named_with_its_trial(value: Any, key: str) -> None:
    del value["trials"][2][key]
    with pytest.raises(TrialsError, match=rf"^some\.json: trial 2: missing key '{key}'$"):
        trials.parse(value, "some.json")


def _set(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(value: Any) -> None:
        for step in path[:-1]:
            value = value[step]
        value[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set("trials", 1, "target_first_token_id", to="32"), r"trial 1: key 'target_first_token_id\S*'.*'32'"),
        (_set("trials", 1, "target_first_token_id", to=32.0), r"trial 1: key 'target_first_token_id\S*'"),
        (_set("trials", 1, "trial_id", to=True), "trial 1: key 'trial_id'"),
        (_set("trials", 1, "clean_prompt_str", to=None), "trial 1: key 'clean_prompt_str'.*None"),
        (_set("trials", 3, "demos_clean", 0, "output", to=5), r"trial 3: key 'demos_clean\.0\.output'"),
        (_set("trials", 3, "query", "input", to=[]), r"trial 3: key 'query\.input'"),
        (_set("meta", "n_shots", to="3"), r"key 'meta\.n_shots'"),
        (_set("trials", to={}), "key 'trials'"),
        (_set("trials", to=[]), "holds no trials"),
        (_set("meta", "n_shots", to=4), r"trial 0 \(trial_id 0\): demos_clean has 3 .*, meta.n_shots says 4"),
        (_set("meta", "n_trials", to=5), "holds 4 trials, meta.n_trials says 5; is the file truncated"),
        (_set("trials", 1, "trial_id", to=0), "trial_id 0 stands twice"),
        (_set("trials", 1, "first_token_id", to=7), r"trial 1 \(trial_id 1\): .*target_first_token_id 32, first_token_id 7"),
        (_set("trials", 1, "answer_ids", 0, to=7), r"trial 1 .*answer_ids\[0\] 7"),
        (_set("trials", 1, "answer_ids", to=[]), "trial 1 .*answer_ids is empty"),
        (_set("trials", 1, "demos_corrupted", 2, "input", to=" zzz"), "trial 1 .*demos_corrupted has input ' zzz'"),
        (_set("trials", 2, "prompt_data_clean", "instructions", to="Do it."), "trial 2 .*prompt_data_clean.instructions"),
        (_set("trials", 2, "prompt_data_corrupted", "prefixes", "input", to="X:"), "trial 2 .*another template than meta"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_the_place(value: Any, change: Callable[[Any], None], message: str) -> None:
    change(value)
    with pytest.raises(TrialsError, match=message) as error:
        trials.parse(value, "some.json")
    assert str(error.value).startswith("some.json: ")
    assert "\n" not in str(error.value)


def test_a_trial_with_a_demonstration_too_few_is_refused(value: Any) -> None:
    del value["trials"][1]["demos_corrupted"][0]
    with pytest.raises(TrialsError, match=r"trial 1 .*demos_corrupted has 2 demonstrations, meta.n_shots says 3"):
        trials.parse(value, "x")


def test_a_truncated_list_of_trials_is_refused(value: Any) -> None:
    value["trials"].pop()
    with pytest.raises(TrialsError, match=r"holds 3 trials, meta\.n_trials says 4"):
        trials.parse(value, "x")


@pytest.mark.parametrize("top", [{}, {"trials": []}, 3, None, "trials", [3], [{}], []])
def test_what_is_no_trials_file_is_refused(top: Any) -> None:
    with pytest.raises(TrialsError, match=r"^x: "):
        trials.parse(top, "x")


def test_a_file_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text('{"meta": ')
    with pytest.raises(FormatError, match=r"broken\.json: not valid JSON \(line 1"):
        trials.read(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"nowhere\.json: no such file"):
        trials.read(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"input": "a"}, "expected a list of .* found dict"),
        ([{"input": "a", "output": "b"}, {"input": "a"}], "entry 1: missing key 'output'"),
        ([{"input": "a", "output": None}], r"entry 0: key 'output'.*found None"),
        ([{"input": "a", "output": True}], r"entry 0: key 'output'.*found True"),
        (
            [{"input": "a", "output": "b"}, {"input": "c", "output": " "}],
            r"row 1 has no output \(1 of 2 rows .*--without-empty-rows",
        ),
        ([{"input": "", "output": "b"}], "row 0 has no input"),
        (["a"], "entry 0: the top level"),
    ],
)
def test_a_broken_dataset_is_refused_with_the_row(tmp_path: Path, rows: Any, message: str) -> None:
    path = tmp_path / "raw.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(TrialsError, match=message):
        trials.read_pairs(path)


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        ([1990, 7], ["1990", "7"]),
        ([1990, "seven"], ["1990", "seven"]),
        ([[1990, 1991], 7], ["1990", "7"]),
        ([1, 2.5], ["1.0", "2.5"]),
        (["07", "7"], ["07", "7"]),
    ],
)
def test_numbers_are_written_as_the_reference_writes_them(tmp_path: Path, column: list[Any], texts: list[str]) -> None:
    path = tmp_path / "raw.json"
    path.write_text(json.dumps([{"input": f"q{i}", "output": value} for i, value in enumerate(column)]))
    assert [pair.output for pair in trials.read_pairs(path)] == texts


def test_rows_without_an_answer_can_be_left_out(tmp_path: Path) -> None:
    path = tmp_path / "raw.json"
    path.write_text(
        json.dumps([{"input": "a", "output": "b"}, {"input": "c", "output": ""}, {"input": "d", "output": "e"}])
    )
    assert [pair.input for pair in trials.read_pairs(path, without_empty=True)] == ["a", "d"]


# ---------------------------------------------------------------- sampled again from the raw rows


def _altered(change: Callable[[Any], None]) -> TrialsFile:
    value = json.loads(trials.text_of(made()))
    change(value)
    return TrialsFile.model_validate(value)


def test_a_file_made_from_the_rows_has_their_draws() -> None:
    assert trials.same_draws(made(), WORDS) == []


def test_a_file_without_splits_or_positions_is_judged_by_its_words(value: Any) -> None:
    file = made()
    assert trials.same_draws(trials.parse(value | {"splits": None}, "x"), WORDS) == []
    assert trials.same_draws(file, WORDS[::-1]) != []


def _swap_valid_and_test(value: Any) -> None:
    splits = value["splits"]
    splits["valid_indices"], splits["test_indices"] = splits["test_indices"], splits["valid_indices"]


def _query_from_the_kept_part(value: Any) -> None:
    row = WORDS[value["splits"]["test_indices"][0]]
    value["trials"][1]["query"] = {"input": f" {row.input}", "output": f" {row.output}"}


def _derange(value: Any) -> None:
    record = value["trials"][1]
    outputs = [demo["output"] for demo in record["demos_clean"]]
    for demo, output in zip(record["demos_corrupted"], outputs[1:] + outputs[:1], strict=True):
        demo["output"] = output


def _raw_rows(value: Any) -> None:
    record = value["trials"][1]
    rows = [WORDS[i] for i in record["demo_indices_in_train"]]
    record["demos_clean"] = [{"input": f" {row.input}", "output": f" {row.output}"} for row in rows]


def _other_positions(value: Any) -> None:
    value["trials"][1]["demo_indices_in_train"].reverse()


def _other_query_position(value: Any) -> None:
    value["trials"][1]["query_index_in_valid"] += 1


@pytest.mark.parametrize(
    ("change", "problems"),
    [
        (_swap_valid_and_test, ["splits differ from a fresh split of the dataset"]),
        (_query_from_the_kept_part, ["trial 1: query differs from a fresh sample with seed 0"]),
        (_derange, ["trial 1: demos_corrupted differs from a fresh sample with seed 0"]),
        (_raw_rows, ["trial 1: demos_clean differs from a fresh sample with seed 0"]),
        (_other_positions, ["trial 1: demo_indices_in_train differs from a fresh sample with seed 0"]),
        (_other_query_position, ["trial 1: query_index_in_valid differs from a fresh sample with seed 0"]),
    ],
)
def test_another_draw_is_found(change: Callable[[Any], None], problems: list[str]) -> None:
    assert trials.same_draws(_altered(change), WORDS) == problems


def test_only_the_first_trials_are_looked_at_when_asked() -> None:
    assert trials.same_draws(_altered(_derange), WORDS, first=1) == []
    assert len(trials.same_draws(_altered(_derange), WORDS, first=2)) == 1


def test_another_seed_gives_other_trials() -> None:
    other = _altered(_set("meta", "seed", to=1))
    assert len(trials.same_draws(other, WORDS)) > len(other.trials)


def test_parsing_leaves_its_input_alone(value: Any) -> None:
    before = copy.deepcopy(value)
    trials.parse(value, "x")
    trials.parse(value["trials"], "x")
    assert value == before
