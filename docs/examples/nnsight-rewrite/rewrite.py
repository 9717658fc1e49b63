"""Heads and residual streams of a model of Llama's make, read and edited inside traces of nnsight.

What is read as a head is what *enters* the output projection: `o_proj.input`. Its output is another thing.
"""

import copy

import nnsight
import torch


class Traced:
    def __init__(self, model):
        # nnsight rewrites the modules that it wraps: it is given a copy.
        self.net = nnsight.NNsight(copy.deepcopy(model))
        self.blocks, self.config = self.net.model.layers, model.config

    def split(self, x):
        """(1, token, n_heads * d_head) -> (token, head, d_head)"""
        return x[0].unflatten(-1, (self.config.num_attention_heads, -1))

    @torch.no_grad()
    def heads(self, ids):
        """(layer, head, token, d_head)"""
        with self.net.trace(torch.tensor([ids]), use_cache=False):
            seen = nnsight.save([block.self_attn.o_proj.input for block in self.blocks])
        return torch.stack([self.split(x) for x in seen]).transpose(1, 2)

    @torch.no_grad()
    def with_head(self, ids, layer, head, value):
        """(vocab,) of the next token, one head replaced at the last token by `value` (d_head,)."""
        with self.net.trace(torch.tensor([ids]), use_cache=False):
            changed = self.blocks[layer].self_attn.o_proj.input.clone()
            self.split(changed)[-1, head] = value
            self.blocks[layer].self_attn.o_proj.input = changed
            logits = self.net.output.logits.save()
        return logits[0, -1]

    @torch.no_grad()
    def with_vector(self, ids, layer, vector):
        """(vocab,) of the next token, `vector` (d_model,) added at the last token to what leaves a block."""
        with self.net.trace(torch.tensor([ids]), use_cache=False):
            hidden = self.blocks[layer].output.clone()
            hidden[:, -1] += vector
            self.blocks[layer].output = hidden
            logits = self.net.output.logits.save()
        return logits[0, -1]
