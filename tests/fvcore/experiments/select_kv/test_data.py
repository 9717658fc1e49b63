"""The samples of Select-KV: what is asked, how it is read, and that it follows from the settings alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fvcore.embedded.words import GROUPS, relations
from fvcore.experiments.config import ConfigError
from fvcore.experiments.select_kv import data, off_prompts
from fvcore.experiments.select_kv.config import Phase2
from fvcore.experiments.select_kv.errors import HFBackendUnavailable, OnTaskInvalid
from fvcore.experiments.select_kv.tokens import OnSample, roles_of
from fvcore.formats import write_text
from tests.fvcore.experiments.conftest import trials_path
from tests.late import RUNNING

if RUNNING:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from fvcore.embedded import wired
    from fvcore.model.model import load_tokenizer

WORDS = Phase2().changed({"data.synthetic.num_pairs": 8, "eval.on_samples": 12})
RELATIONS = Phase2().changed({"data.on.source": "relation", "data.off.source": "relation", "eval.on_samples": 36})


@pytest.fixture(scope="module")
def words() -> Any:
    return wired.tokenizer()


@pytest.fixture(scope="module", params=["tiny-llama", "tiny-gpt2"])
def shipped(request: pytest.FixtureRequest) -> Any:
    return load_tokenizer(request.param)


def parts(sample: OnSample, role: str) -> list[str]:
    demo = sample.demo
    return [demo.text[a:b] for (a, b), one in zip(demo.offsets, demo.roles, strict=True) if one == role]


def characters(vocab: str) -> PreTrainedTokenizerFast:
    """A token a character: what splits V0 into V and 0."""
    own = Tokenizer(models.WordLevel({one: i for i, one in enumerate(["<unk>", *vocab])}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>")


def test_a_look_up_is_of_its_demonstration_and_of_no_other(words: Any) -> None:
    samples = data.on_samples(WORDS, words)

    assert len({sample.episode_id for sample in samples}) == len(samples) == 12
    for sample in samples:
        pairs = [line.split(" -> ") for line in sample.demo.text.splitlines()[1:-1]]
        assert len({key for key, _ in pairs}) == len({value for _, value in pairs}) == 8
        assert sample.query_text == f"Question: What is the value for {_key_of(pairs, sample.answer)}?\nAnswer:"
        assert words.decode(sample.full_answer_ids) == sample.answer
        assert sample.answer_ids == sample.full_answer_ids
        assert not sample.boundary_mismatch
    assert {sample.answer for sample in samples} > {samples[0].answer}


def _key_of(pairs: list[list[str]], value: str) -> str:
    return next(key for key, one in pairs if one == value)


def test_samples_follow_from_seed_and_place(words: Any) -> None:
    few, many = (data.on_samples(WORDS.changed({"eval.on_samples": n}), words) for n in (3, 12))

    assert many[:3] == few
    assert data.on_samples(WORDS.changed({"seed": 8, "eval.on_samples": 3}), words) != few
    assert [sample.sample_id for sample in few] == ["on-0000", "on-0001", "on-0002"]


def test_every_token_has_the_role_of_its_characters(words: Any) -> None:
    sample = data.on_samples(WORDS, words)[0]

    assert parts(sample, "header")[0] == "Demo:"
    assert all(text.startswith("key_") for text in parts(sample, "key"))
    assert [len(parts(sample, role)) for role in ("key", "arrow", "value")] == [8, 8, 8]
    assert set(parts(sample, "arrow")) == {"->"}
    assert set(parts(sample, "value")) <= set(wired.VALUES)


def test_a_token_that_holds_a_character_of_a_value_is_a_value() -> None:
    segments = [("key", "key"), (" -> ", "arrow"), ("V0", "value"), ("\n", "newline")]

    assert roles_of(segments, [(0, 3), (3, 6), (6, 9), (9, 10)]) == ("key", "arrow", "value", "newline")
    assert roles_of(segments, [(0, 4), (4, 8), (8, 10)]) == ("key", "value", "value")


def test_the_fixed_mapping_is_one_demonstration_and_needs_values_of_one_token(words: Any) -> None:
    tokenizer = wired.tokenizer()
    tokenizer.add_tokens([f"V{i}" for i in range(5)])
    fixed = Phase2().changed({"data.synthetic.mapping": "fixed", "eval.on_samples": 9})

    samples = data.on_samples(fixed, tokenizer)

    assert len({sample.demo for sample in samples}) == 1
    assert len({sample.answer for sample in samples}) > 1
    with pytest.raises(OnTaskInvalid, match="both begin with token"):
        data.on_samples(fixed, characters("Demo:\n->Question: What is the value for?AnswerkeyV_0123456789 "))


def test_values_that_begin_alike_are_refused_before_any_model_runs() -> None:
    by_character = characters("Demo:\n->Question: What is the value for?Answerkey_0123456789 VAB")
    settings = Phase2().changed({"data.synthetic.value_pool": ["VA", "VB"], "data.synthetic.num_pairs": 2})

    with pytest.raises(OnTaskInvalid, match="cannot tell them apart"):
        data.on_samples(settings, by_character)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data.synthetic.num_pairs": 13}, "num_pairs is 13, and the tokenizer leaves 12 keys"),
        ({"data.synthetic.value_pool": ["VA", "V B"], "data.synthetic.num_pairs": 2}, "single symbols"),
        ({"data.synthetic.value_pool": ["VA", "VA"], "data.synthetic.num_pairs": 2}, "leaves 1 values"),
        ({"data.synthetic.value_prefix": "W"}, "leaves 0 values"),
    ],
)
def test_a_task_that_cannot_be_made_says_why(words: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(OnTaskInvalid, match=message):
        data.on_samples(Phase2().changed(values), words)


def test_a_relation_s_demonstration_shows_it_and_its_query_asks_for_another_word(shipped: Any) -> None:
    samples = data.on_samples(RELATIONS, shipped)

    known = relations()
    assert [sample.relation for sample in samples[:18]] == [sample.relation for sample in samples[18:]]
    assert {sample.relation for sample in samples} == set(known)
    assert {sample.group for sample in samples[:3]} == {sample.group for sample in samples[3:6]} == set(GROUPS)
    for sample in samples:
        relation = known[sample.relation]
        keys, values = (
            [text.strip() for text in texts] for texts in (parts(sample, "key"), sample.demo.text.split("A:")[1:])
        )
        asked = sample.query_text.removeprefix("Q: ").removesuffix("\nA:")
        assert [relation[word] for word in _words(sample)] == [text.split("\n")[0].strip() for text in values]
        assert relation[asked] == sample.answer
        assert asked not in _words(sample)
        assert asked in GROUPS[sample.group]
        assert keys
        assert len(parts(sample, "arrow")) == 10
        assert set(parts(sample, "arrow")) == {":"}


def _words(sample: OnSample) -> list[str]:
    return [line.removeprefix("Q: ") for line in sample.demo.text.splitlines() if line.startswith("Q: ")]


def test_a_sample_s_answer_is_told_from_every_label_of_its_demonstration(shipped: Any) -> None:
    for sample in data.on_samples(RELATIONS, shipped):
        assert sample.full_answer_ids[0] in sample.answer_ids
        for label in {line.removeprefix("A: ") for line in sample.demo.text.splitlines() if line.startswith("A: ")}:
            if label != sample.answer:
                begins = {shipped(text, add_special_tokens=False).input_ids[0] for text in (label, f" {label}")}
                assert not begins & set(sample.answer_ids)


def test_off_prompts_of_relations_carry_their_group_and_their_answer(shipped: Any) -> None:
    prompts = data.off_samples(RELATIONS, shipped)

    assert len({prompt.text for prompt in prompts}) == 256
    assert {prompt.group for prompt in prompts} == set(GROUPS)
    for prompt in prompts:
        assert prompt.text.endswith("\nA:")
        assert prompt.answer_ids
        assert prompt.text.split("Q: ")[-1].removesuffix("\nA:") in GROUPS[prompt.group]
        assert prompt.ids == tuple(shipped(prompt.text, add_special_tokens=False).input_ids)


def test_fixed_trials_are_demonstration_and_query() -> None:
    path = trials_path("tiny-llama")
    tokenizer = load_tokenizer("tiny-llama")
    settings = RELATIONS.changed({"data.on.path": str(path), "eval.on_samples": 10})

    samples = data.on_samples(settings, tokenizer)

    for sample, trial in zip(samples, json.loads(path.read_text())["trials"], strict=True):
        assert sample.demo.text + sample.query_text == trial["clean_prompt_str"]
        assert sample.answer == trial["target_str"].strip()
        assert sample.full_answer_ids[0] == trial["target_first_token_id"]
        assert sample.group == "adjective"
    with pytest.raises(OnTaskInvalid, match=r"eval.on_samples is 11, and .* holds 10 trials"):
        data.on_samples(settings.changed({"eval.on_samples": 11}), tokenizer)


def test_a_folder_of_sampled_trials_is_asked_relation_by_relation(tmp_path: Path) -> None:
    """Q1 and Q2 in turn, each under its own name; and as OFF, prompts of each on states of the other."""
    for q_id, word in {"Q1": "ab", "Q2": "ef"}.items():
        write_text(tmp_path / q_id / "sampled_trials.json", json.dumps(_sampled(q_id, word, ("hot", "wet"))))
    tokenizer = load_tokenizer("tiny-llama")
    settings = RELATIONS.changed(
        {"data.on.path": str(tmp_path), "eval.on_samples": 3, "data.off.path": str(tmp_path), "eval.off_samples": 4}
    )

    samples, prompts = data.on_samples(settings, tokenizer), data.off_samples(settings, tokenizer)

    assert [sample.group for sample in samples] == ["Q1", "Q2", "Q1"]
    assert [prompt.group for prompt in prompts] == ["Q1", "Q2", "Q1", "Q2"]
    words = [sample.demo.text for sample in samples]
    assert words == [f"Q: {word}\nA: hot\n\n" for word in ("ab0", "ef0", "ab1")]
    with pytest.raises(OnTaskInvalid, match="off_samples is 5"):
        data.off_samples(settings.changed({"eval.off_samples": 5}), tokenizer)
    repeated = data.off_samples(settings.changed({"eval.off_samples": 5, "data.off.allow_repeat": True}), tokenizer)
    assert repeated[4].text == repeated[0].text
    (empty := tmp_path / "empty").mkdir()
    with pytest.raises(OnTaskInvalid, match="found neither"):
        data.on_samples(settings.changed({"data.on.path": str(empty)}), tokenizer)


def test_labels_that_begin_alike_are_no_answers_by_their_first_token(tmp_path: Path) -> None:
    write_text(own := tmp_path / "sampled_trials.json", json.dumps(_sampled("Q1", "ab", ("xya", "xyb"))))
    tokenizer = load_tokenizer("tiny-llama")
    paths = {"data.on.path": str(own), "data.off.path": str(own), "eval.on_samples": 2, "eval.off_samples": 2}
    settings = RELATIONS.changed(paths)

    with pytest.raises(OnTaskInvalid, match=r"ON sample 0: answers 'xyb' and 'xya' .* eval.answer_scoring=full_answer"):
        data.on_samples(settings, tokenizer)
    whole = data.on_samples(settings.changed({"eval.answer_scoring": "full_answer"}), tokenizer)
    assert [tokenizer.decode(sample.full_answer_ids) for sample in whole] == [" xyb", " xyb"]
    assert len(data.off_samples(settings, tokenizer)) == 2


def _sampled(q_id: str, word: str, labels: tuple[str, str]) -> dict[str, Any]:
    trials = []
    for i in range(2):
        demo, query = ({"input": f"{word}{n}", "output": label} for n, label in zip((i, i + 5), labels, strict=True))
        prompt = f"Q: {demo['input']}\nA: {demo['output']}\n\nQ: {query['input']}\nA:"
        trials.append(
            {
                "q_id": q_id, "trial_idx": i, "trial_id": i, "clean_prompt_str": prompt, "corrupted_prompt_str": prompt,
                "corrupted_full_str": f"{prompt} {query['output']}", "target_str": f" {query['output']}",
                "target_first_token_id": 1, "target_token": "", "demos_clean": [demo], "demos_corrupted": [demo], "query": query,
            }
        )  # fmt: skip
    meta = {
        "source": "relation_csv",
        "relation_csv_path": "r.csv",
        "seed": 0,
        "n_trials": 2,
        "n_shots": 1,
        "n_demos": 1,
    }
    return {"meta": meta, "trials": trials}


def test_builtin_prompts_are_many_and_hold_nothing_of_a_task(words: Any) -> None:
    texts = off_prompts.texts("builtin")

    assert len(set(texts)) == len(texts) >= 256
    taboo = ("->", "Question:", "key_", "Q:", "A:", *(f" V{letter}" for letter in "ABC"))
    assert not [text for text in texts if any(one in text for one in taboo)]
    # The hand-wired model reads every one of them.
    assert not [text for text in texts if words.unk_token_id in words(text).input_ids]


def test_off_prompts_are_drawn_without_replacement_unless_repeats_are_allowed(words: Any, tmp_path: Path) -> None:
    drawn = data.off_samples(Phase2(), words)
    assert len({prompt.text for prompt in drawn}) == 256
    assert {prompt.group for prompt in drawn} == {""}
    assert data.off_samples(Phase2().changed({"seed": 8}), words) != drawn

    own = tmp_path / "own.jsonl"
    write_text(own, '{"text": "one", "more": 1}\n{"text": "two"}\n{"text": "one"}\n')
    settings = Phase2().changed({"data.off.source": str(own), "eval.off_samples": 2})
    assert sorted(prompt.text for prompt in data.off_samples(settings, words)) == ["one", "two"]
    with pytest.raises(OnTaskInvalid, match=r"eval.off_samples is 3, .* has 2 different prompts"):
        data.off_samples(settings.changed({"eval.off_samples": 3}), words)
    again = settings.changed({"eval.off_samples": 5, "data.off.allow_repeat": True})
    assert len(data.off_samples(again, words)) == 5
    legacy = Phase2().changed({"data.off.source": "legacy5", "eval.off_samples": 5})
    assert len({prompt.text for prompt in data.off_samples(legacy, words)}) == 5


def test_the_sink_is_what_the_tokenizer_does_unless_it_is_said() -> None:
    with_bos, without = load_tokenizer("tiny-llama"), load_tokenizer("tiny-gpt2")

    assert data.sink_ids(Phase2(), with_bos) == (with_bos.bos_token_id,)
    assert data.sink_ids(Phase2(), without) == ()
    said = [Phase2().changed({"tokenization.add_bos": bos}) for bos in (False, True)]
    assert data.sink_ids(said[0], with_bos) == ()
    assert data.sink_ids(said[1], without) == (without.bos_token_id,)
    with pytest.raises(ConfigError, match="add_bos: expected a tokenizer with a BOS"):
        data.sink_ids(said[1], characters("a"))


def test_a_slow_tokenizer_is_refused() -> None:
    class Slow:
        is_fast = False

    with pytest.raises(HFBackendUnavailable, match="expected a fast one"):
        data.on_samples(Phase2(), Slow())
    with pytest.raises(HFBackendUnavailable, match="expected a fast one"):
        data.off_samples(Phase2(), Slow())
