"""Function vectors on plain torch hooks, for a model of Llama's make. Knows nothing of the checks.

Shapes: heads are what enters a layer's output projection, (layer, head, token, d_head).
"""

from contextlib import contextmanager

import torch


class Hooked:
    """A Hugging Face model, read and edited by hooks that are taken off again."""

    def __init__(self, model):
        self.model, self.blocks = model, model.model.layers
        self.n_layers, self.n_heads = len(self.blocks), model.config.num_attention_heads

    def projection(self, layer):
        return self.blocks[layer].self_attn.o_proj

    @torch.no_grad()
    def logits(self, ids):
        """(token, vocab)"""
        return self.model(torch.tensor([ids]), use_cache=False).logits[0]

    def split(self, x):
        """(1, token, n_heads * d_head) -> (token, head, d_head)"""
        return x[0].unflatten(-1, (self.n_heads, -1))

    def heads(self, ids):
        """(layer, head, token, d_head)"""
        seen = []

        def read(module, args):
            seen.append(self.split(args[0]).clone())

        with hooks([self.projection(layer).register_forward_pre_hook(read) for layer in range(self.n_layers)]):
            self.logits(ids)
        return torch.stack(seen).transpose(1, 2)

    def with_head(self, ids, layer, head, value):
        """(token, vocab), one head replaced at the last token by `value` (d_head,)."""

        def replace(module, args):
            changed = args[0].clone()
            self.split(changed)[-1, head] = value
            return (changed,)

        with hooks([self.projection(layer).register_forward_pre_hook(replace)]):
            return self.logits(ids)

    def with_vector(self, ids, layer, vector, tokens):
        """(token, vocab), `vector` (d_model,) added to what leaves a block at some tokens."""

        def add(module, args, output):
            hidden = (output[0] if isinstance(output, tuple) else output).clone()
            hidden[:, tokens] += vector
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        with hooks([self.blocks[layer].register_forward_hook(add)]):
            return self.logits(ids)


@contextmanager
def hooks(handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def effects(hooked, ids, target, means):
    """By how much each head at its mean (layer, head, d_head) makes the target more probable: (layer, head)."""
    before = hooked.logits(ids)[-1].softmax(-1)[target]
    found = torch.zeros(hooked.n_layers, hooked.n_heads)
    for layer in range(hooked.n_layers):
        for head in range(hooked.n_heads):
            found[layer, head] = hooked.with_head(ids, layer, head, means[layer, head])[-1].softmax(-1)[target] - before
    return found


@torch.no_grad()
def terms(hooked, means, heads):
    """What each of some heads writes at its mean: (rank, d_model)."""
    rows = []
    for layer, head in heads:
        alone = torch.zeros(hooked.n_heads, means.shape[-1])
        alone[head] = means[layer, head]
        rows.append(hooked.projection(layer)(alone.flatten()[None])[0])
    return torch.stack(rows)


def written(logits, ids, n_tokens=16):
    """What follows some ids, the most probable token each time; `logits` gives (token, vocab) of ids."""
    found = list(ids)
    for _ in range(n_tokens):
        found.append(int(logits(found)[-1].argmax()))
    return found[len(ids) :]
