"""What is the sum of two vectors? Each task's vector alone, their sum and their difference, on both tasks.

    python add_vectors.py
    pytest -m parity --fv-candidate=add_vectors:Mine    # is each vector as long as the reference's?

Todd et al. (section 3.3) add and subtract vectors of tasks. Whether a sum does what its name says is measured, not assumed.
"""

import itertools

import torch

import fvcore

WORDS = (
    "big small, tall short, fast slow, old young, good bad, happy sad, heavy light, strong weak, wet dry, clean dirty"
)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TASKS = {
    "antonym": [tuple(pair.split()) for pair in WORDS.split(", ")],
    "next letter": list(itertools.pairwise(LETTERS)),
}
LAYER = 0


class Mine(fvcore.Pipeline):
    """The method, with a vector that is summed here."""

    def fv_vector(self, mean_activations, top_heads):
        leaves = super().fv_vector(mean_activations, top_heads)
        vector = leaves["head_terms"].sum(dim=0)  # (rank, d_model) -> (d_model,)
        # vector = vector / vector.norm()  # a bug to try: sums of such vectors weigh tasks otherwise than their heads do
        # fvparity: FAIL at fv_vector, function_vector
        return leaves | {"function_vector": vector, "norm": float(vector.norm())}


def vector_of(lm: fvcore.LanguageModel, pairs: list[tuple[str, str]]) -> torch.Tensor:
    """(d_model,)"""
    mine = Mine(lm, fvcore.make_trials(lm, pairs, n_shots=5), fvcore.Settings(n_top_heads=6))
    prompts = mine.prompt_boundary()
    slots = mine.slot_map(prompts)
    means = mine.mean_activations(prompts, slots)
    return mine.fv_vector(means, mine.top_heads(prompts, slots, means))["function_vector"]


def n_right(lm: fvcore.LanguageModel, pairs: list[tuple[str, str]], vectors: list[torch.Tensor]) -> list[int]:
    """Without examples: how many answers are right with each vector."""
    asked = [lm.tokenizer(f"Q: {word}\nA:").input_ids for word, _ in pairs]
    answers = [lm.tokenizer(f"Q: {word}\nA: {answer}").input_ids[-1] for word, answer in pairs]
    said = fvcore.inject_logits(lm, asked, vectors, [LAYER]).argmax(-1)[:, 1:]
    return (said == torch.tensor(answers)[:, None]).sum(dim=0).tolist()


def main() -> None:
    lm = fvcore.load("tiny-llama")
    a, b = (vector_of(lm, pairs) for pairs in TASKS.values())
    print(f"cosine of the two vectors: {float(torch.cosine_similarity(a, b, dim=0)):.2f}")
    named = dict(zip([*TASKS, "sum", "difference"], [a, b, a + b, a - b], strict=True))
    for task, pairs in TASKS.items():
        for name, right in zip(named, n_right(lm, pairs, list(named.values())), strict=True):
            print(f"{task}, with the vector {name}: {right} of {len(pairs)} right")


if __name__ == "__main__":
    main()
