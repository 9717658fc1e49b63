"""The hand-wired model: it looks keys up, nothing else, and its two knobs each put one thing out of order."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore import embedded
    from fvcore.embedded import wired
    from fvcore.model import model as models

if TYPE_CHECKING:
    from torch import Tensor

PAIRS = 8


def asked(n: int) -> list[tuple[str, str, str]]:
    """Demonstration, query and answer."""
    rng, found = random.Random(0), []
    for _ in range(n):
        pairs = list(zip(rng.sample(wired.KEYS, PAIRS), rng.sample(wired.VALUES, PAIRS), strict=True))
        key, value = rng.choice(pairs)
        demo = "Demo:\n" + "".join(f"{one} -> {other}\n" for one, other in pairs) + "\n"
        found.append((demo, f"Question: What is the value for {key}?\nAnswer:", value))
    return found


def answers(parts: tuple[Any, Any], texts: list[str]) -> tuple[list[str], Tensor]:
    """The likeliest word behind each text, and the distributions' logarithms."""
    model, tokenizer = parts
    with torch.inference_mode():
        logits = [model(torch.tensor([tokenizer(text).input_ids])).logits[0, -1] for text in texts]
    return [tokenizer.decode([int(one.argmax())]) for one in logits], torch.stack(logits).double().log_softmax(-1)


def right(parts: tuple[Any, Any]) -> float:
    problems = asked(24)
    said, _ = answers(parts, [demo + query for demo, query, _ in problems])
    return sum(one == value for one, (_, _, value) in zip(said, problems, strict=True)) / len(problems)


def disturbance(parts: tuple[Any, Any]) -> float:
    """Nats by which what is kept of a demonstration moves a prompt that has nothing to do with it, at most."""
    prompts = [f"Task: rewrite this note. Tone: {tone}" for tone in wired.TONES]
    demo = f"-> {wired.VALUES[0]} -> {wired.VALUES[1]} "
    (_, alone), (_, behind) = (answers(parts, [before + prompt for prompt in prompts]) for before in ("", demo))
    return float((behind.exp() * (behind - alone)).sum(-1).max())


def test_a_key_is_looked_up_in_its_demonstration_and_nowhere_else() -> None:
    parts = wired.build()

    assert right(parts) == 1.0
    assert set(answers(parts, [query for _, query, _ in asked(3)])[0]) == {"?"}


def test_other_prompts_have_one_answer_and_hardly_move() -> None:
    parts = wired.build()

    said, _ = answers(parts, [f"Task: translate this poem. Tone: {tone}" for tone in wired.TONES])
    assert said == list(wired.OUTCOMES)
    assert disturbance(parts) < 0.05


def test_each_knob_puts_one_thing_out_of_order() -> None:
    assert right(wired.build(match_gain=0)) < 0.5
    assert disturbance(wired.build(match_gain=0)) < 0.05
    assert right(wired.build(leak=6)) == 1.0
    assert disturbance(wired.build(leak=6)) > 1


def test_it_is_loaded_by_name_and_from_a_folder_with_the_same_weights(tmp_path: Path) -> None:
    named, saved = models.load(embedded.WIRED), models.load(str(wired.save(tmp_path / "own")))

    assert named.name == "wired"
    assert named.weights_sha == saved.weights_sha
    assert named.tokenizer_sha == saved.tokenizer_sha
    assert right((named.hf, named.tokenizer)) == 1.0
    assert models.load(str(wired.save(tmp_path / "leaky", leak=6))).weights_sha != named.weights_sha
