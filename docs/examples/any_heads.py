"""Would any heads do? The vector of the best heads beside the vectors of as many others.

python any_heads.py
pytest -m parity --fv-candidate=any_heads:Mine      # is the vector the reference's?
"""

import random

import torch

import fvcore

WORDS = (
    "big small, tall short, fast slow, old young, good bad, happy sad, heavy light, strong weak, wet dry, clean dirty"
)
PAIRS = [tuple(pair.split()) for pair in WORDS.split(", ")]
LAYER, N_HEADS, N_DRAWS = 0, 4, 10


class Mine(fvcore.Pipeline):
    """The method, with a vector that is summed here."""

    def fv_vector(self, mean_activations, top_heads):
        terms = []
        for layer, head in top_heads["heads"]:
            mean = mean_activations["mean_activations"][layer, head, -1]  # the last token's, where the answer is due
            # mean = mean_activations["mean_activations"][layer, head].mean(dim=0)  # a bug to try: of all tokens
            # fvparity: FAIL at fv_vector, function_vector
            alone = torch.zeros(self.lm.n_heads, self.lm.d_head)
            alone[head] = mean
            terms.append(self.lm.o_proj(layer)(alone.flatten()[None])[0].detach())
        vector = torch.stack(terms).sum(dim=0)
        return {"function_vector": vector, "norm": float(vector.norm()), "head_terms": torch.stack(terms)}


def main() -> None:
    lm = fvcore.load("tiny-llama")
    mine = Mine(lm, fvcore.make_trials(lm, PAIRS, n_shots=5), fvcore.Settings(n_top_heads=N_HEADS))
    prompts = mine.prompt_boundary()
    slots = mine.slot_map(prompts)
    means = mine.mean_activations(prompts, slots)
    best = mine.top_heads(prompts, slots, means)["heads"]

    draw, others = random.Random(0), [list(head) for head in lm.heads if list(head) not in best]
    drawn = [best, *(draw.sample(others, N_HEADS) for _ in range(N_DRAWS))]
    vectors = [mine.fv_vector(means, {"heads": heads})["function_vector"] for heads in drawn]
    asked = [lm.tokenizer(f"Q: {word}\nA:").input_ids for word, _ in PAIRS]
    answers = [lm.tokenizer(f"Q: {word}\nA: {answer}").input_ids[-1] for word, answer in PAIRS]
    said = fvcore.inject_logits(lm, asked, vectors, [LAYER]).argmax(-1)  # (prompt, without then each vector)
    right = (said == torch.tensor(answers)[:, None]).sum(dim=0).tolist()
    print(f"without a vector {right[0]} of {len(PAIRS)} right")
    print(f"with the {N_HEADS} best heads' {right[1]} of {len(PAIRS)} right")
    print(f"with {N_HEADS} others', in the best of {N_DRAWS} draws {max(right[2:])} of {len(PAIRS)} right")


if __name__ == "__main__":
    main()
