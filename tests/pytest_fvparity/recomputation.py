"""The method's numbers once more, on this machine: torch's own hooks, one prompt and one head at a time.

Nothing of fvcore is imported. Words and slots are read off the artifacts, where the golden holds them exactly; every
number is computed here from the model's weights. What equals this to the last bit does the reference's arithmetic,
whatever the processor; what was recorded on another processor is only near.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

# Family -> where its blocks lie, and in a block what its heads' outputs enter.
PLACES = {
    "gpt2": ("transformer.h", "attn.c_proj"),
    "gptj": ("transformer.h", "attn.out_proj"),
    "gpt_neox": ("gpt_neox.layers", "attention.dense"),
    "llama": ("model.layers", "self_attn.o_proj"),
    "mistral": ("model.layers", "self_attn.o_proj"),
}
N_GENERATED = 16


class Recomputation:
    """hf: the model     words: the leaves of `prompt_boundary` and `slot_map`     k: how many heads     layer: edited"""

    def __init__(self, hf: Any, words: Mapping[str, Any], k: int, layer: int) -> None:
        blocks, projection = PLACES[hf.config.model_type]
        self.hf, self.words, self.k, self.layer = hf, words, k, layer
        self.blocks = list(hf.get_submodule(blocks))
        self.projections = [block.get_submodule(projection) for block in self.blocks]
        self.n_heads = hf.config.num_attention_heads
        self.trials = [leaf.removesuffix("/clean/input_ids") for leaf in words if leaf.endswith("/clean/input_ids")]

    @torch.no_grad()
    def numbers(self) -> dict[str, dict[str, Any]]:
        """Check key -> leaf -> value, of the keys that hold numbers."""
        means = torch.stack([self.activations(f"{trial}/clean") for trial in self.trials]).mean(dim=0)
        cie = torch.stack([self.effects(trial, means) for trial in self.trials])
        aie = cie.mean(dim=0)
        scores, order = aie.flatten().sort(descending=True, stable=True)
        heads = [list(divmod(int(at), self.n_heads)) for at in order[: self.k]]
        terms = torch.stack([self.term(layer, head, means[layer, head, -1]) for layer, head in heads])
        vector = terms.sum(dim=0)
        rounded = torch.tensor([round(float(score), 4) for score in scores[: self.k]], dtype=torch.float64)
        injected: dict[str, Any] = {}
        for trial in self.trials:
            injected |= self.injected(trial, vector)
        return {
            "mean_activations": {"mean_activations": means},
            "top_heads": {"cie": cie, "aie": aie, "heads": heads, "scores": rounded},
            "fv_vector": {"function_vector": vector, "norm": float(vector.norm()), "head_terms": terms},
            "injection_output": injected,
        }

    def logits(self, ids: list[int]) -> Tensor:
        """(token, vocab)"""
        found: Tensor = self.hf(torch.tensor([ids]), use_cache=False).logits[0]
        return found

    def split(self, x: Tensor) -> Tensor:
        """(..., heads x d_head) -> (..., head, d_head)"""
        return x.view(*x.shape[:-1], self.n_heads, -1)

    def activations(self, where: str) -> Tensor:
        """What enters the projections on one prompt, a word's tokens averaged: (layer, head, slot, d_head)."""
        entered: list[Tensor] = []
        with hooked(self.projections, lambda _, args: entered.append(args[0][0].clone())):
            self.logits(self.words[f"{where}/input_ids"])
        by_token = torch.stack([self.split(x) for x in entered]).transpose(1, 2)  # (layer, head, token, d_head)
        word = {
            first: by_token[:, :, first : last + 1].mean(dim=2) for _, first, last in self.words[f"{where}/idx_avg"]
        }
        slots = [word.get(token, by_token[:, :, token]) for token, _ in self.words[f"{where}/idx_map"]]
        return torch.stack(slots, dim=2)

    def effects(self, trial: str, means: Tensor) -> Tensor:
        """(layer, head): by how much the answer is likelier with that head's mean at the last token."""
        ids, target = self.words[f"{trial}/corrupted/input_ids"], self.words[f"{trial}/target_id"]
        slot = self.words[f"{trial}/corrupted/query_predictive_slot"]
        base = self.logits(ids)[-1].softmax(dim=-1)[target]
        effects = torch.zeros(len(self.blocks), self.n_heads)
        for layer, projection in enumerate(self.projections):
            for head in range(self.n_heads):

                def replace(
                    _: Any, args: Any, mean: Tensor = means[layer, head, slot], head: int = head
                ) -> tuple[Tensor]:
                    x = args[0].clone()
                    self.split(x)[0, -1, head] = mean
                    return (x,)

                with hooked([projection], replace):
                    effects[layer, head] = self.logits(ids)[-1].softmax(dim=-1)[target] - base
        return effects

    def term(self, layer: int, head: int, mean: Tensor) -> Tensor:
        """What one head writes, the projection's bias included: (d_model,)."""
        x = torch.zeros(1, 1, self.n_heads * len(mean))
        self.split(x)[0, 0, head] = mean
        written: Tensor = self.projections[layer](x)
        return written.flatten()

    def injected(self, trial: str, vector: Tensor) -> dict[str, Any]:
        """The next token and the answer's likelihood without the vector and with it, and 16 tokens generated."""
        ids, answer = (self.words[f"{trial}/corrupted/{name}"] for name in ("input_ids", "answer_ids"))
        target, last = self.words[f"{trial}/target_id"], len(ids) - 1
        leaves: dict[str, Any] = {f"{trial}/target_id": target}
        for side in ("base", "with"):

            def run(ids: list[int], until: int | None = None, adds: bool = side == "with") -> Tensor:
                def add(_: Any, args: Any, output: Any) -> Any:
                    residual = (output[0] if isinstance(output, tuple) else output).clone()
                    residual[:, last:until] += vector
                    return (residual, *output[1:]) if isinstance(output, tuple) else residual

                with hooked([self.blocks[self.layer]] if adds else [], add, after=True):
                    return self.logits(ids)

            now, generated = run(ids)[-1], list(ids)
            following = run([*ids, *answer], last + 1)[last:-1].log_softmax(dim=-1)
            ends = self.hf.generation_config.eos_token_id
            while len(generated) < len(ids) + N_GENERATED and (len(generated) == len(ids) or generated[-1] != ends):
                generated.append(int(run(generated)[-1].argmax()))
            leaves |= {
                f"{trial}/{side}_logits": now,
                f"{trial}/{side}_logprob": float(now.log_softmax(dim=-1)[target]),
                f"{trial}/{side}_nll": float(-following[range(len(answer)), answer].mean()),
                f"{trial}/{side}_generated": generated[len(ids) :],
            }
        leaves[f"{trial}/delta_logprob"] = leaves[f"{trial}/with_logprob"] - leaves[f"{trial}/base_logprob"]
        return leaves


@contextmanager
def hooked(modules: list[Any], hook: Callable[..., Any], after: bool = False) -> Iterator[None]:
    """The hook on every module, before it runs or after, for one block of code."""
    handles = [(m.register_forward_hook if after else m.register_forward_pre_hook)(hook) for m in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
