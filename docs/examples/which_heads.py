"""Which heads carry my task?

In a prompt whose labels are shuffled each head in turn is given what it does on average in good prompts. By how much
that makes the right answer more probable is the head's effect; a few stand out.

    python which_heads.py
    pytest -m parity --fv-candidate=which_heads:Mine    # is the ranking the reference's?
"""

import torch

import fvcore

WORDS = (
    "big small, tall short, fast slow, old young, good bad, happy sad, heavy light, strong weak, wet dry, clean dirty"
)
PAIRS = [tuple(pair.split()) for pair in WORDS.split(", ")]


class Mine(fvcore.Pipeline):
    """The method with a ranking of my own."""

    def top_heads(self, prompts, slot_map, mean_activations):
        leaves = super().top_heads(prompts, slot_map, mean_activations)
        aie = leaves["cie"].mean(dim=0)  # (trial, layer, head) -> (layer, head)
        # aie = leaves["cie"].abs().mean(dim=0)  # a bug to try: a head that hurts counts like one that helps
        # fvparity: FAIL at top_heads, aie
        scores, order = aie.flatten().sort(descending=True, stable=True)
        n = self.settings.n_top_heads
        return leaves | {
            "aie": aie,
            "heads": [list(divmod(int(at), self.lm.n_heads)) for at in order[:n]],
            "scores": torch.tensor([round(float(score), 4) for score in scores[:n]], dtype=torch.float64),
        }


def main() -> None:
    lm = fvcore.load("tiny-llama")
    mine = Mine(lm, fvcore.make_trials(lm, PAIRS, n_shots=5), fvcore.Settings(n_top_heads=4))
    prompts = mine.prompt_boundary()
    slots = mine.slot_map(prompts)
    found = mine.top_heads(prompts, slots, mine.mean_activations(prompts, slots))
    aie = found["aie"]
    for layer, head in found["heads"]:
        print(
            f"layer {layer}, head {head}: the answer becomes {100 * float(aie[layer, head]):.1f} points more probable"
        )
    print(f"the middle one of all {aie.numel()} heads: {100 * float(aie.median()):.1f} points")


if __name__ == "__main__":
    main()
