"""Prompts, the labels of their tokens, and the slots those tokens fall into."""

import re

import numpy as np

BOS_TEXT = "<|endoftext|>"


def word_pairs_to_prompt_data(
    word_pairs, prefixes=None, separators=None, query_target_pair=None, prepend_bos_token=False, shuffle_labels=False
):
    """Words come as {"input": [...], "output": [...]}, without the leading space that is written here."""
    prefixes = prefixes or {"input": "Q:", "output": "A:", "instructions": ""}
    if prepend_bos_token:
        prefixes = {**prefixes, "instructions": BOS_TEXT + prefixes["instructions"]}
    answers = np.random.permutation(word_pairs["output"]) if shuffle_labels else word_pairs["output"]
    return {
        "instructions": "",
        "prefixes": prefixes,
        "separators": separators or {"input": "\n", "output": "\n\n", "instructions": ""},
        "examples": [
            {"input": f" {question}", "output": f" {answer}"}
            for question, answer in zip(word_pairs["input"], answers, strict=True)
        ],
        "query_target": {side: f" {words[0]}" for side, words in query_target_pair.items()},
    }


def get_prompt_parts_and_labels(prompt_data):
    """The prompt's texts in groups, and a label for each of them."""
    before, after = prompt_data["prefixes"], prompt_data["separators"]
    texts = [[before["instructions"]], [prompt_data["instructions"]], [after["instructions"]]]
    labels = [["bos_token"], ["instructions_token"], ["separator_token"]]
    for number, pair in enumerate([*prompt_data["examples"], prompt_data["query_target"]], start=1):
        asked = number > len(prompt_data["examples"])
        query, word = ("query_", "query_demonstration") if asked else ("", f"demonstration_{number}")
        question = [before["input"], pair["input"], after["input"], before["output"]]
        of_question = [f"{query}structural_token", f"{word}_token", f"{query}separator_token"]
        of_question.append(f"{query}structural_token")
        texts.append(question if asked else [*question, pair["output"], after["output"]])
        labels.append(of_question if asked else [*of_question, f"{word}_label_token", "separator_token"])
    return texts, labels


def create_prompt(prompt_data):
    texts, _ = get_prompt_parts_and_labels(prompt_data)
    return "".join(text for group in texts for text in group)


def tokenize_labels(sentence_parts, text_labels, tokenizer, prepend_bos=False):
    """One label a token: a text has as many tokens as the prompt grows by when it is appended."""
    labels, prompt = ["bos_token"] if prepend_bos else [], ""
    for group, group_labels in zip(sentence_parts, text_labels, strict=True):
        for position, (text, label) in enumerate(zip(group, group_labels, strict=True)):
            if not text:
                continue
            grown = len(tokenizer.tokenize(prompt + text)) - len(tokenizer.tokenize(prompt))
            prompt += text
            if grown == 0:  # the text went into the token before it
                labels[-1] = label
            labels += [label] * grown
            if position == 3:
                labels[-1] = re.sub("structural|separator", "predictive", labels[-1])
            if position == 5 and grown:
                labels[-grown] = labels[-grown].replace("separator", "end_of_example")
    return labels


def get_token_meta_labels(prompt_data, tokenizer, query=None, prepend_bos=False):
    prompt = create_prompt(prompt_data)
    tokens = [tokenizer.decode([i]) for i in tokenizer(prompt).input_ids]
    labels = tokenize_labels(*get_prompt_parts_and_labels(prompt_data), tokenizer, prepend_bos)
    return list(zip(range(len(tokens)), tokens, labels, strict=False)), prompt


def get_dummy_token_labels(n_icl_examples, tokenizer, model_config, prefixes=None, separators=None):
    """The slots: (number, label) of a prompt in which every word is `a`."""
    prompt_data = word_pairs_to_prompt_data(
        {"input": ["a"] * n_icl_examples, "output": ["a"] * n_icl_examples},
        query_target_pair={"input": ["a"], "output": ["a"]},
        prepend_bos_token=not model_config["prepend_bos"],
        prefixes=prefixes,
        separators=separators,
    )
    labelled, _ = get_token_meta_labels(prompt_data, tokenizer, prepend_bos=model_config["prepend_bos"])
    return [(slot, label) for slot, _, label in labelled]


def compute_duplicated_labels(token_labels, gt_labels):
    """Token -> slot for the first token of every word, and label -> (first, last) for words of several tokens."""
    ranges, firsts = {}, []
    for token, _, label in token_labels:
        if "demo" not in label or label not in ranges:
            firsts.append(token)
        if "demo" in label:
            ranges[label] = (ranges.get(label, (token,))[0], token)
    idx_map = {token: slot for token, (slot, _) in zip(firsts, gt_labels, strict=False)}
    return idx_map, {label: (first, last) for label, (first, last) in ranges.items() if last > first}


def update_idx_map(idx_map, idx_avg):
    """The same map with the later tokens of each word added."""
    later = {token: idx_map[first] for first, last in idx_avg.values() for token in range(first + 1, last + 1)}
    return {**later, **idx_map}
