"""Does my model know my task? How often the answer is right behind no, one, three and six examples.

    python knows_task.py
    pytest -m parity --fv-candidate=knows_task:Mine     # are my prompts the reference's?

Without a model that knows the task from examples there is no vector to look for.
"""

import fvcore

WORDS = (
    "big small, tall short, fast slow, old young, good bad, happy sad, heavy light, strong weak, wet dry, clean dirty"
)
PAIRS = [tuple(pair.split()) for pair in WORDS.split(", ")]


def prompt(examples: list[tuple[str, str]], question: str) -> str:
    between = "\n\n"
    # between = "\n"  # a bug to try: one line break too few
    # fvparity: FAIL at prompt_boundary, 0:0/clean/text
    return "".join(f"Q: {word}\nA: {answer}{between}" for word, answer in examples) + f"Q: {question}\nA:"


class Mine(fvcore.Pipeline):
    """The method as it is, on the prompts that are built here."""

    def prompt_boundary(self):
        leaves = super().prompt_boundary()
        for trial in self.trials.trials:
            examples = [(demo.input.strip(), demo.output.strip()) for demo in trial.demos]
            text = prompt(examples, trial.query.input.strip())
            leaves[f"{trial.key}/clean/text"] = text
            leaves[f"{trial.key}/clean/input_ids"] = self.lm.tokenizer(text).input_ids
        return leaves


def is_right(lm: fvcore.LanguageModel, at: int, n_examples: int) -> bool:
    """Whether the most probable next token begins the answer to pair `at`, behind the pairs that follow it."""
    word, answer = PAIRS[at]
    text = prompt([PAIRS[(at + k) % len(PAIRS)] for k in range(1, n_examples + 1)], word)
    ids = lm.tokenizer(text).input_ids
    first = lm.tokenizer(f"{text} {answer}").input_ids[len(ids)]
    return int(lm.logits(lm.ids(ids))[0, -1].argmax()) == first


def main() -> None:
    lm = fvcore.load("tiny-llama")
    for n_examples in (0, 1, 3, 6):
        right = sum(is_right(lm, at, n_examples) for at in range(len(PAIRS)))
        print(f"{n_examples} examples: {right} of {len(PAIRS)} right")


if __name__ == "__main__":
    main()
