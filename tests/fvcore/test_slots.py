"""The slot map: the worked examples of the method's specification, and every edge case with its required result."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from fvcore.embedded.random_models import toy_tokenizer
from fvcore.prompts import PromptTemplate
from fvcore.slots import (
    QUERY_PREDICTIVE,
    NoPredictiveSlot,
    SlotAlignmentError,
    SlotError,
    SlotMap,
    dummy_labels,
    slot_map,
)
from fvcore.trials.fixed import PREFIXES, SEPARATORS, TrialsError, WordPair, parse

TEMPLATE = PromptTemplate(PREFIXES, SEPARATORS)
T1 = r"\n\n|\n| ?[A-Za-z]{1,4}|[^A-Za-z\s]|\s"


@dataclass
class RegexTokenizer:
    """Every match of the pattern is a token, what no match covers is dropped; `bos` and `eos` are put around."""

    pattern: str = T1
    bos: bool = False
    bos_token: str = "<s>"
    bos_token_id: int = 1
    eos_token: str = "</s>"
    eos_token_id: int = 2
    model_max_length: int = 1000

    def tokenize(self, text: str) -> list[str]:
        return re.findall(self.pattern, text)

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> Any:
        special = [1] if self.bos and add_special_tokens else []
        return SimpleNamespace(input_ids=special + [sum(map(ord, token)) + 10 for token in self.tokenize(text)])

    def decode(self, token_ids: Any) -> str:
        raise NotImplementedError


def pairs(*words: tuple[str, str]) -> list[WordPair]:
    return [WordPair(input=f" {a}", output=f" {b}") for a, b in words]


def mapped(
    tokenizer: Any,
    demos: Sequence[WordPair],
    query: str = " sunny",
    prepend_bos: bool = False,
    template: PromptTemplate = TEMPLATE,
) -> tuple[list[str], SlotMap]:
    """Dummy labels, and the map of one prompt onto them."""
    slots = dummy_labels(tokenizer, template, len(demos), prepend_bos)
    where = "trial 7:3, corrupted prompt"
    return slots, slot_map(tokenizer, template, demos, query, slots, prepend_bos, where)


def template_with(part: str, **texts: str) -> PromptTemplate:
    parts = {"prefixes": PREFIXES, "separators": SEPARATORS}
    parts[part] = parts[part].model_copy(update=texts)
    return PromptTemplate(**parts)


WORKED_EXAMPLE = pairs(("hot", "cold"), ("unhappy", "glad"))


# ---------------------------------------------------------------- the worked example


TABLE = [
    ("<s>", "bos_token", 0),
    ("Q", "structural_token", 1),
    (":", "structural_token", 2),
    (" hot", "demonstration_1_token", 3),
    ("\n", "separator_token", 4),
    ("A", "structural_token", 5),
    (":", "predictive_token", 6),
    (" cold", "demonstration_1_label_token", 7),
    ("\n\n", "end_of_example_token", 8),
    ("Q", "structural_token", 9),
    (":", "structural_token", 10),
    (" unha", "demonstration_2_token", 11),
    ("ppy", "demonstration_2_token", 11),
    ("\n", "separator_token", 12),
    ("A", "structural_token", 13),
    (":", "predictive_token", 14),
    (" glad", "demonstration_2_label_token", 15),
    ("\n\n", "end_of_example_token", 16),
    ("Q", "query_structural_token", 17),
    (":", "query_structural_token", 18),
    (" sunn", "query_demonstration_token", 19),
    ("y", "query_demonstration_token", 19),
    ("\n", "query_separator_token", 20),
    ("A", "query_structural_token", 21),
    (":", "query_predictive_token", 22),
]  # fmt: skip


def test_the_worked_example_with_bos() -> None:
    tokenizer = toy_tokenizer("bos")
    ids = tokenizer(TEMPLATE.text(WORKED_EXAMPLE, " sunny")).input_ids
    slots, found = mapped(tokenizer, WORKED_EXAMPLE, prepend_bos=True)
    full = found.full_idx_map
    rows = [(tokenizer.decode([i]), found.labels[token], full[token]) for token, i in enumerate(ids)]
    assert rows == TABLE
    assert [slots[slot] for _, _, slot in TABLE] == [label for _, label, _ in TABLE]
    assert len(slots) == found.n_slots == 23
    assert len(found.idx_map) == 23
    assert set(range(25)) - set(found.idx_map) == {12, 21}
    assert found.idx_avg == {"demonstration_2_token": (11, 12), "query_demonstration_token": (20, 21)}
    assert (found.query_predictive_token, found.query_predictive_slot) == (24, 22)
    assert found.notes == ()


def test_the_worked_example_without_bos_is_the_same_shifted_by_one() -> None:
    tokenizer = toy_tokenizer("plain")
    slots, found = mapped(tokenizer, WORKED_EXAMPLE)
    assert list(found.labels) == [label for _, label, _ in TABLE[1:]]
    assert [found.full_idx_map[token] for token in range(24)] == [slot - 1 for _, _, slot in TABLE[1:]]
    assert (len(found.labels), len(slots), len(found.idx_map)) == (24, 22, 22)
    assert found.idx_avg == {"demonstration_2_token": (10, 11), "query_demonstration_token": (19, 20)}


def test_a_second_newline_that_appears_late_is_structural() -> None:
    # Two newlines are one token at the end of the text only: the second shows up when the next prefix is appended.
    tokenizer = toy_tokenizer("gpt2")
    slots, found = mapped(tokenizer, WORKED_EXAMPLE)
    ids = tokenizer(TEMPLATE.text(WORKED_EXAMPLE, " sunny")).input_ids
    labelled = [(tokenizer.decode([i]), label) for i, label in zip(ids, found.labels, strict=True)]
    assert labelled[7:11] == [
        ("\n", "end_of_example_token"),
        ("\n", "structural_token"),
        ("Q", "structural_token"),
        (":", "structural_token"),
    ]
    assert labelled[17:21] == [
        ("\n", "end_of_example_token"),
        ("\n", "query_structural_token"),
        ("Q", "query_structural_token"),
        (":", "query_structural_token"),
    ]
    assert (len(found.labels), len(slots)) == (26, 24)
    assert found.idx_avg == {"demonstration_2_token": (11, 12), "query_demonstration_token": (21, 22)}


@pytest.mark.parametrize(("kind", "prepend_bos", "n"), [("bos", True, 87), ("plain", False, 86), ("gpt2", False, 96)])
def test_ten_shots_have_as_many_slots_as_the_real_models(kind: str, prepend_bos: bool, n: int) -> None:
    slots = dummy_labels(toy_tokenizer(kind), TEMPLATE, 10, prepend_bos)
    assert len(slots) == n
    assert slots[-1] == QUERY_PREDICTIVE
    assert slots.count("predictive_token") == slots.count("end_of_example_token") == 10
    assert [label for label in slots if "demo" in label] == [
        *(f"demonstration_{k}_{kind}" for k in range(1, 11) for kind in ("token", "label_token")),
        "query_demonstration_token",
    ]


def test_labels_of_one_prompt_do_not_leak_into_the_next() -> None:
    first = mapped(toy_tokenizer("bos"), WORKED_EXAMPLE, prepend_bos=True)
    assert mapped(toy_tokenizer("bos"), WORKED_EXAMPLE, prepend_bos=True) == first


def test_the_order_of_the_parts_is_the_order_of_the_text() -> None:
    template = template_with("prefixes", instructions="Do:")
    shown = "".join(f"Q:{demo.input}\nA:{demo.output}\n\n" for demo in WORKED_EXAMPLE)
    assert template.text(WORKED_EXAMPLE, " sunny") == f"Do:{shown}Q: sunny\nA:"
    assert [len(group) for group in template.parts(WORKED_EXAMPLE, " sunny")] == [1, 1, 6, 6, 4]


def test_of_an_output_separator_with_two_tokens_the_first_ends_the_example() -> None:
    slots, found = mapped(RegexTokenizer(T1.removeprefix(r"\n\n|")), pairs(("hot", "cold"), ("wet", "dry")))
    assert slots[7:10] == ["end_of_example_token", "separator_token", "structural_token"]
    assert found.labels == (*slots[:-3], *slots[-4:])  # the query alone has two tokens


# ---------------------------------------------------------------- edge cases


def test_of_a_word_with_three_tokens_the_first_is_kept_and_all_are_averaged() -> None:  # E1
    slots, found = mapped(RegexTokenizer(), pairs(("dangerously", "safe")), " up")
    assert found.idx_avg == {"demonstration_1_token": (2, 4)}
    assert (2 in found.idx_map, 3 in found.idx_map, 4 in found.idx_map) == (True, False, False)
    assert [found.full_idx_map[token] for token in (2, 3, 4)] == [2, 2, 2]
    assert slots[2] == "demonstration_1_token"
    assert sorted(found.idx_map.values()) == list(range(len(slots)))


def test_a_newline_swallowed_by_punctuation_takes_the_label_and_is_noted() -> None:  # E2
    tokenizer = RegexTokenizer(r"\.\n|" + T1)
    slots, found = mapped(tokenizer, pairs(("Mr.", "cold"), ("wet", "dry")))
    assert tokenizer.tokenize("Q: Mr.\nA:")[2:4] == [" Mr", ".\n"]
    assert found.labels[2:5] == ("demonstration_1_token", "separator_token", "structural_token")
    assert len(found.idx_map) == len(slots)
    assert "demonstration_1_token" not in found.idx_avg
    (note,) = found.notes
    assert note.startswith("merged_boundary: '\\n' merged into the token before it")


def test_a_swallowed_output_separator_leaves_no_end_of_example_and_is_noted() -> None:  # E3
    tokenizer = RegexTokenizer(r"!\n\n|" + T1, bos=True)
    slots, found = mapped(tokenizer, pairs(("wet", "yes!"), ("hot", "cold")), prepend_bos=True)
    assert tokenizer.tokenize("A: yes!\n\n")[2:] == [" yes", "!\n\n"]
    assert found.labels[7:10] == ("demonstration_1_label_token", "separator_token", "structural_token")
    assert found.labels.count("end_of_example_token") == 1
    assert found.labels[0] == "bos_token"
    assert len(found.idx_map) == len(slots)
    assert slots[8] == "end_of_example_token"
    assert len(found.notes) == 1
    assert "merged_boundary" in found.notes[0]


def test_a_swallowed_separator_touches_no_other_label() -> None:  # E3, where element 0 would be touched
    # The prompt begins with a separator, which counting zero from the end would rename.
    template = PromptTemplate(PREFIXES, SEPARATORS.model_copy(update={"instructions": "."}))
    _, found = mapped(RegexTokenizer(r"!\n\n|" + T1), pairs(("wet", "yes!")), template=template)
    assert found.labels[0] == "separator_token"


SWALLOWED = RegexTokenizer(r" \?\n?|" + T1)


def test_a_swallowed_word_is_refused_with_trial_regime_and_demonstration() -> None:  # E4
    demos = pairs(("?", "cold"), ("unhappy", "glad"))
    with pytest.raises(SlotAlignmentError) as error:
        mapped(SWALLOWED, demos)
    message = str(error.value)
    assert message.startswith("trial 7:3, corrupted prompt: 22 slots expected, the prompt fills 21")
    assert "demonstration_1_token" in message
    assert "demonstration_2_token" not in message


def test_a_bos_that_the_labels_lack_is_refused() -> None:  # E5
    with pytest.raises(SlotAlignmentError, match=r"tokens but \d+ labels.*check model_prepend_bos"):
        mapped(toy_tokenizer("bos"), WORKED_EXAMPLE, prepend_bos=False)
    slots = dummy_labels(toy_tokenizer("plain"), TEMPLATE, 2, prepend_bos=False)
    with pytest.raises(SlotAlignmentError, match="trial 3:3: 25 tokens but 24 labels; often a BOS the tokenizer adds"):
        slot_map(toy_tokenizer("bos"), TEMPLATE, WORKED_EXAMPLE, " sunny", slots, False, "trial 3:3")


def test_a_bos_that_the_tokenizer_lacks_is_refused() -> None:  # E6
    with pytest.raises(SlotAlignmentError, match="often a BOS the tokenizer lacks"):
        mapped(toy_tokenizer("plain"), WORKED_EXAMPLE, prepend_bos=True)


def test_an_empty_output_prefix_is_refused() -> None:  # E7
    template = template_with("prefixes", input="", output="")
    with pytest.raises(NoPredictiveSlot, match=r"output prefix is empty.*such as 'A:'"):
        mapped(RegexTokenizer(), WORKED_EXAMPLE, template=template)
    with pytest.raises(NoPredictiveSlot, match="trial 1:1"):
        slot_map(RegexTokenizer(), template, WORKED_EXAMPLE, " sunny", [], False, "trial 1:1")


def test_zero_shots_have_six_slots() -> None:  # E8
    slots, found = mapped(toy_tokenizer("plain"), [])
    assert slots == [
        "query_structural_token",
        "query_structural_token",
        "query_demonstration_token",
        "query_separator_token",
        "query_structural_token",
        "query_predictive_token",
    ]
    assert found.idx_avg == {"query_demonstration_token": (2, 3)}


def test_an_empty_query_is_refused() -> None:  # E9
    with pytest.raises(SlotError, match="trial 7:3, corrupted prompt: the query is empty"):
        mapped(RegexTokenizer(), WORKED_EXAMPLE, query="")


def test_text_in_front_of_the_instructions_is_labelled_bos() -> None:  # E10
    template = template_with("prefixes", instructions="Opposites!")
    slots, found = mapped(RegexTokenizer(), WORKED_EXAMPLE, template=template)
    assert RegexTokenizer().tokenize("Opposites!") == ["Oppo", "site", "s", "!"]
    assert slots[:5] == ["bos_token"] * 4 + ["structural_token"]
    assert found.labels[:5] == tuple(slots[:5])
    assert len(found.idx_map) == len(slots) == 22 + 4


def test_instructions_of_a_trial_are_refused() -> None:  # E11
    demo = {"input": " a", "output": " b"}
    data = {
        "instructions": "Give the opposite.",
        "separators": SEPARATORS.model_dump(),
        "prefixes": PREFIXES.model_dump(),
        "query_target": demo,
        "examples": [],
    }
    record = {
        "trial_id": 0,
        "demos_clean": [],
        "demos_corrupted": [],
        "query": demo,
        "prompt_data_clean": data,
        "prompt_data_corrupted": data,
        "clean_prompt_str": "",
        "corrupted_prompt_str": "",
        "target_str": " b",
        "target_first_token_id": 5,
    }
    with pytest.raises(TrialsError, match=r"prompt_data_clean.instructions is 'Give the opposite.'; .* no slots"):
        parse([record], "x")


# ` open` is two tokens until its newline comes, and then one with it.
SHRINKING = RegexTokenizer(r" open\n| op|en|" + T1)


def test_a_part_that_takes_tokens_away_is_refused() -> None:  # E12
    with pytest.raises(
        SlotAlignmentError, match=r"^trial 7:3.*: appending '\\n' \(separator_token\) takes 1 token\(s\) away"
    ):
        mapped(SHRINKING, pairs(("open", "shut")))


def test_a_first_part_without_tokens_is_refused() -> None:  # E13
    template = template_with("prefixes", instructions="~")
    tokenizer = RegexTokenizer(T1.replace("[^A-Za-z", "[^~A-Za-z"))
    with pytest.raises(SlotAlignmentError, match="the prompt begins with '~', which is no token of its own"):
        mapped(tokenizer, WORKED_EXAMPLE, template=template)


def test_a_tokenizer_that_splits_the_dummy_word_is_refused() -> None:  # E14
    with pytest.raises(SlotAlignmentError, match=r"slots need ' a' to be one token.* makes \[' ', 'a'\] of it"):
        mapped(RegexTokenizer(r"\n\n|\n|[A-Za-z]{1,4}|[^A-Za-z\s]|\s"), WORKED_EXAMPLE)


BOS_IN_THE_TEXT = template_with("prefixes", instructions="<s>")
BOS_AS_A_TOKEN = RegexTokenizer("<s>|" + T1)


def test_a_prompt_with_more_slots_than_the_dummy_is_refused() -> None:  # E15
    slots = dummy_labels(BOS_AS_A_TOKEN, TEMPLATE, 2, prepend_bos=False)
    with pytest.raises(SlotAlignmentError, match="trial 3:3: 22 slots expected, the prompt fills 23"):
        slot_map(BOS_AS_A_TOKEN, BOS_IN_THE_TEXT, WORKED_EXAMPLE, " sunny", slots, False, "trial 3:3")


def test_a_bos_text_in_prompt_and_dummy_alike_is_one_more_slot() -> None:
    slots, found = mapped(BOS_AS_A_TOKEN, WORKED_EXAMPLE, template=BOS_IN_THE_TEXT)
    assert (len(slots), slots[0], found.query_predictive_slot) == (23, "bos_token", 22)


def test_a_last_part_swallowed_by_its_neighbour_keeps_the_predictive_label() -> None:
    # `\nA:` is one token: separator and prefix grow the text by one token together.
    tokenizer = RegexTokenizer(r"\nA:|" + T1)
    _, found = mapped(tokenizer, pairs(("hot", "cold")))
    assert found.labels[-1] == QUERY_PREDICTIVE
    assert found.labels[3] == "predictive_token"


def test_a_repeated_word_is_labelled_by_its_place() -> None:
    _, found = mapped(RegexTokenizer(), pairs(("unhappy", "unhappy"), ("unhappy", "glad")), " unhappy")
    assert list(found.idx_avg) == sorted(found.idx_avg)
    assert found.idx_avg == {
        "demonstration_1_label_token": (7, 8),
        "demonstration_1_token": (2, 3),
        "demonstration_2_token": (12, 13),
        "query_demonstration_token": (21, 22),
    }
