"""A small model whose features, and what they cause, are known because they were written into its weights.

Its residual stream is spanned by orthogonal directions. A chain is four of them, and one model holds several chains:

    A   is in one word, wherever it stands              C   is in the same word and in another: it goes with A and does nothing
    A2  is written by block 1, whose attention moves what it reads of A to all later words
    B   is written by block 2, as `effect` times what it reads of A2, and the rest of it in every prompt alike

Beside the chains there is BIAS, in every word, which opens the gates of block 2; N, which block 2 writes always; E, in one
word, which nobody reads; S, large at the first token alone, which attention adds to N; and the others are in words at
random, and nobody reads them. The largest part of every word is in no feature at all. All else in the weights is small noise.

Norms couple everything: whatever grows makes all else that a block reads smaller. The part in no feature keeps that small.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor

D_MODEL, N_LAYERS, N_WORDS = 64, 4, 64
N_CHAINS = 3
LEFT_OUT = 8
"""Directions that no feature reads: what an autoencoder leaves over is not nothing."""
THRESHOLD = 0.2
NOISE = 0.3  # of the weights that the library draws
LENGTH = 12  # tokens of a context, the first one special
MOVES, DRIVES = 7.5, 0.5  # how strongly A2 and B are written
SINK, PLENTY, MASS = 12.0, 1.5, 4.0  # sizes of S, of BIAS, and of what is in every word and in no feature

Node: TypeAlias = tuple[int, int]
"""A layer and a feature there."""
Edge: TypeAlias = tuple[Node, Node]


@dataclass(frozen=True)
class Planted:
    """hf: the model     rows (feature, d_model): unit decoder rows of every layer, their encoder is the transposed one

    names: A.0, C.0, A2.0, B.0, ... BIAS, N, E, S -> the feature     contexts: token ids, the first one special
    true: what causes what     open: what may be found or not, for norms and gates couple what is large to everything
    """

    hf: Any
    rows: Tensor
    names: dict[str, int]
    nulls: tuple[int, ...]
    contexts: tuple[tuple[int, ...], ...]
    true: frozenset[Edge]
    open: frozenset[Edge]
    threshold: float = THRESHOLD

    @property
    def targets(self) -> list[Node]:
        """What sources are looked for: A2 at layer 1, then B and N at layer 2."""
        chains = range(sum(name.startswith("A.") for name in self.names))
        return [
            *((1, self.names[f"A2.{k}"]) for k in chains),
            *((2, self.names[f"B.{k}"]) for k in chains),
            (2, self.names["N"]),
        ]

    def name(self, feature: int) -> str:
        return next((name for name, one in self.names.items() if one == feature), f"null.{feature}")


def build(
    seed: int = 0,
    effects: Sequence[float] = (1.0,) * N_CHAINS,
    overcomplete: bool = False,
    curved: bool = False,
    n_contexts: int = 16,
) -> Planted:
    """The same world for the same arguments, in fp32 on the CPU.

    effects: of each chain, the part of B that A2 writes (0: none; then A and A2 cause no B)     overcomplete: as many
    random rows again, which overlap     curved: gates are opened by A2 itself, so that slopes say little of effects
    """
    draw = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(D_MODEL, D_MODEL, generator=draw))[0].T
    names = _names(len(effects))
    nulls = tuple(range(len(names), D_MODEL - LEFT_OUT))
    model = _blank(draw)
    with torch.no_grad():
        _embed(model, basis, names, nulls, draw)
        _move(model, basis, names)
        _drive(model, basis, names, effects, curved)
    rows = basis[: D_MODEL - LEFT_OUT]
    if overcomplete:
        more = torch.randn(D_MODEL, D_MODEL, generator=draw)
        rows = torch.cat([rows, more / more.norm(dim=1, keepdim=True)])
    contexts = tuple(_context(draw, len(effects)) for _ in range(n_contexts))
    return Planted(model, rows, names, nulls, contexts, _true(names, effects, curved), _open(names, effects))


def _names(n_chains: int) -> dict[str, int]:
    chains = [f"{kind}.{k}" for k in range(n_chains) for kind in ("A", "C", "A2", "B")]
    return {name: at for at, name in enumerate([*chains, "BIAS", "N", "E", "S"])}


def _blank(draw: torch.Generator) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=N_WORDS,
        hidden_size=D_MODEL,
        intermediate_size=96,
        num_hidden_layers=N_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        bos_token_id=0,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).float().eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.dim() == 2:
            weight.normal_(0, NOISE * config.initializer_range, generator=draw)
    return model


def _embed(model: Any, basis: Tensor, names: dict[str, int], nulls: Sequence[int], draw: torch.Generator) -> None:
    """Word 0 begins every context; word k + 1 holds A and C of chain k, word k + 1 + n C alone, the next one E."""
    table = model.model.embed_tokens.weight
    table.normal_(0, 0.02, generator=draw).add_(PLENTY * basis[names["BIAS"]] + MASS * basis[-1])
    n = sum(name.startswith("A.") for name in names)
    for k in range(n):
        table[k + 1] += basis[names[f"A.{k}"]] + basis[names[f"C.{k}"]]
        table[k + 1 + n] += basis[names[f"C.{k}"]]
    table[2 * n + 1] += basis[names["E"]]
    table[0] += SINK * basis[names["S"]]
    for word in range(1, N_WORDS):
        for null in torch.randperm(len(nulls), generator=draw)[:3]:
            table[word] += (0.5 + torch.rand(1, generator=draw)) * basis[nulls[int(null)]]


def _move(model: Any, basis: Tensor, names: dict[str, int]) -> None:
    """Block 1 attends to all words alike."""
    attention = model.model.layers[1].self_attn
    for part in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        part.weight.zero_()
    moved = [(f"A.{name[3:]}", name, MOVES) for name in names if name.startswith("A2.")] + [("S", "N", 0.5)]
    for at, (read, written, strength) in enumerate(moved):
        attention.v_proj.weight[at] = basis[names[read]]
        attention.o_proj.weight[:, at] = strength * basis[names[written]]


def _drive(model: Any, basis: Tensor, names: dict[str, int], effects: Sequence[float], curved: bool) -> None:
    """Block 2: one neuron of each chain for what A2 drives, one for the rest of B, and one for N."""
    mlp, bias = model.model.layers[2].mlp, basis[names["BIAS"]]
    neurons = [(bias, bias, names["N"], 0.2)]
    for k, effect in enumerate(effects):
        read = basis[names[f"A2.{k}"]]
        neurons.append((read if curved else bias, read, names[f"B.{k}"], DRIVES * effect))
        neurons.append((bias, bias, names[f"B.{k}"], 0.2 * (1 - effect)))
    for at, (gate, up, written, strength) in enumerate(neurons):
        mlp.gate_proj.weight[at], mlp.up_proj.weight[at] = gate, up
        mlp.down_proj.weight[:, at] = strength * basis[written]


def _context(draw: torch.Generator, n_chains: int) -> tuple[int, ...]:
    """Any words, but those of a chain and of E each in three contexts of four, and only where they are put."""
    words = torch.randint(2 * n_chains + 2, N_WORDS, (LENGTH,), generator=draw)
    words[0] = 0
    places = 1 + torch.randperm(LENGTH - 2, generator=draw)
    for word in range(1, 2 * n_chains + 2):
        if torch.rand(1, generator=draw) < 0.75:
            words[places[word - 1]] = word
    return tuple(int(word) for word in words)


def _true(names: dict[str, int], effects: Sequence[float], curved: bool) -> frozenset[Edge]:
    """BIAS counts from layer 1 on, where it is what opens the gates, of B those that A2 does not open itself."""
    edges = {((1, names["BIAS"]), (2, names["N"]))}
    for k, effect in enumerate(effects):
        a, a2, b = (names[f"{kind}.{k}"] for kind in ("A", "A2", "B"))
        edges |= {((0, a), (1, a2))}
        edges |= {((0, a), (2, b)), ((1, a2), (2, b))} if effect else set()
        edges |= {((1, names["BIAS"]), (2, b))} if effect < 1 or not curved else set()
    return frozenset(edges)


def _open(names: dict[str, int], effects: Sequence[float]) -> frozenset[Edge]:
    """What is large changes the norms, and with them what is written always: BIAS at layer 0, N, and all chains for N."""
    targets = [(1, names[f"A2.{k}"]) for k in range(len(effects))]
    targets += [(2, names[f"B.{k}"]) for k in range(len(effects))] + [(2, names["N"])]
    large = {((layer, names[name]), target) for layer, name in ((0, "BIAS"), (1, "N")) for target in targets}
    chains = {(layer, names[f"{kind}.{k}"]) for layer, kind in ((0, "A"), (1, "A2")) for k in range(len(effects))}
    return frozenset(large | {(source, targets[-1]) for source in chains})
