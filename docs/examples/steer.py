"""Can I steer a prompt of my own? What the model writes with the vector added at the last token.

python steer.py
pytest -m parity --fv-candidate=steer:Mine          # does my hook add it where the reference does?
"""

import torch

import fvcore

WORDS = (
    "big small, tall short, fast slow, old young, good bad, happy sad, heavy light, strong weak, wet dry, clean dirty"
)
PAIRS = [tuple(pair.split()) for pair in WORDS.split(", ")]


@torch.no_grad()
def steered(lm: fvcore.LanguageModel, ids: list[int], vector: torch.Tensor, layer: int) -> torch.Tensor:
    """Logits (vocab,) of the next token, the vector added to what leaves a block."""

    def add(block, args, output):
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, -1] += vector
        # hidden[:, :-1] += vector  # a bug to try: at every other token too
        # fvparity: FAIL at injection_output, 0:0/with_logprob
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = lm.blocks[layer].register_forward_hook(add)
    try:
        return lm.hf(torch.tensor([ids]), use_cache=False).logits[0, -1]
    finally:
        hook.remove()


class Mine(fvcore.Pipeline):
    """The method, with logits of an injection that is made here."""

    def injection_output(self, prompts, fv_vector):
        leaves, layer = super().injection_output(prompts, fv_vector), self.settings.layer_of(self.lm)
        for trial in self.trials.trials:
            ids, target = prompts[f"{trial.key}/corrupted/input_ids"], prompts[f"{trial.key}/target_id"]
            logits = steered(self.lm, ids, fv_vector["function_vector"], layer)
            said = float(logits.log_softmax(-1)[target])
            leaves |= {f"{trial.key}/with_logits": logits, f"{trial.key}/with_logprob": said}
            leaves[f"{trial.key}/delta_logprob"] = said - leaves[f"{trial.key}/base_logprob"]
        return leaves


def main() -> None:
    lm = fvcore.load("tiny-llama")
    found = fvcore.run(lm, fvcore.make_trials(lm, PAIRS, n_shots=5), fvcore.Settings(n_top_heads=6), injected=False)
    vector = found["fv_vector"]["function_vector"]
    for word in ("hot", "early", "deep"):  # none of them stands in PAIRS
        ids = lm.tokenizer(f"Q: {word}\nA:").input_ids
        said = [steered(lm, ids, times * vector, layer=0).argmax() for times in (0, 1, 2)]
        without, once, twice = (lm.tokenizer.decode(token).strip() for token in said)
        print(f"{word}: {without}; with the vector {once}; with twice the vector {twice}")


if __name__ == "__main__":
    main()
