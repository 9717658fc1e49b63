"""Does the vector work at every layer? The answer without examples, with the vector added behind each layer in turn.

python every_layer.py
pytest -m parity --fv-candidate=every_layer:Mine    # are the means behind the vector the reference's?
"""

import fvcore

WORDS = (
    "big small, tall short, fast slow, old young, good bad, happy sad, heavy light, strong weak, wet dry, clean dirty"
)
PAIRS = [tuple(pair.split()) for pair in WORDS.split(", ")]


class Mine(fvcore.Pipeline):
    """The method, with means of heads that are taken here."""

    def mean_activations(self, prompts, slot_map):
        regime = "clean"
        # regime = "corrupted"  # a bug to try: the mean over prompts whose labels are shuffled, so that no layer works
        # fvparity: FAIL at mean_activations, mean_activations
        cases = [
            (prompts[f"{trial.key}/{regime}/input_ids"], self.slots(trial, regime)) for trial in self.trials.trials
        ]
        return {"mean_activations": fvcore.mean_head_activations(self.lm, cases)}


def vector_of(mine: Mine):
    """(d_model,)"""
    prompts = mine.prompt_boundary()
    slots = mine.slot_map(prompts)
    means = mine.mean_activations(prompts, slots)
    return mine.fv_vector(means, mine.top_heads(prompts, slots, means))["function_vector"]


def main() -> None:
    lm = fvcore.load("tiny-llama")
    vector = vector_of(Mine(lm, fvcore.make_trials(lm, PAIRS, n_shots=5), fvcore.Settings(n_top_heads=6)))
    prompts = [lm.tokenizer(f"Q: {word}\nA:").input_ids for word, _ in PAIRS]
    answers = [lm.tokenizer(f"Q: {word}\nA: {answer}").input_ids[-1] for word, answer in PAIRS]
    logits = fvcore.inject_logits(lm, prompts, [vector], range(lm.n_layers))  # (prompt, without then each layer, vocab)
    for at, where in enumerate(["without the vector", *(f"behind layer {layer}" for layer in range(lm.n_layers))]):
        right = sum(int(row[at].argmax()) == answer for row, answer in zip(logits, answers, strict=True))
        print(f"{where:20}{right:3} of {len(PAIRS)} right")


if __name__ == "__main__":
    main()
