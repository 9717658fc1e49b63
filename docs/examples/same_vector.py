"""Are two implementations the same? Two ways to a vector, compared leaf by leaf with the tolerance of fp32.

python same_vector.py
pytest -m parity --fv-candidate=same_vector:Mine    # and is it the reference's?
"""

import torch

import fvcore
from fvcore.compare import Tolerance, compare

WORDS = (
    "big small, tall short, fast slow, old young, good bad, happy sad, heavy light, strong weak, wet dry, clean dirty"
)
PAIRS = [tuple(pair.split()) for pair in WORDS.split(", ")]


class Mine(fvcore.Pipeline):
    """The method, with each head's share of the output projection cut out of its weight."""

    def fv_vector(self, mean_activations, top_heads):
        terms = []
        for layer, head in top_heads["heads"]:
            weight = self.lm.o_proj(layer).weight.detach()  # of a torch.nn.Linear: (d_model, n_heads * d_head)
            span = slice(head * self.lm.d_head, (head + 1) * self.lm.d_head)
            share = weight[:, span]
            # share = weight[span].T  # a bug to try: rows for columns; the shapes fit where the weight is square
            # fvparity: FAIL at fv_vector, function_vector
            terms.append(share @ mean_activations["mean_activations"][layer, head, -1])
        vector = torch.stack(terms).sum(dim=0)
        return {"function_vector": vector, "norm": float(vector.norm()), "head_terms": torch.stack(terms)}


def main() -> None:
    lm = fvcore.load("tiny-llama")
    trials, settings = fvcore.make_trials(lm, PAIRS, n_shots=5), fvcore.Settings(n_top_heads=6)
    found = fvcore.run(lm, trials, settings, injected=False)
    mine = Mine(lm, trials, settings).fv_vector(found["mean_activations"], found["top_heads"])
    verdict = compare(found["fv_vector"], mine, Tolerance(of_max=1e-5))
    print(f"{verdict.counted}; largest difference {verdict.measurements['max_abs_diff']:.1e}")
    if not verdict.passed:
        print(f"first: {verdict.first_mismatch.where} {verdict.first_mismatch.message}")


if __name__ == "__main__":
    main()
