"""What a shipped model must be able to do, measured with the library's own stations.

    python -m fvcore.embedded.gate DIR      a directory or a shipped model's name; exit status 1 when it fails

1. Ten-shot accuracy is high; zero-shot accuracy, and accuracy with every label moved to another question, are low.
2. A few heads carry the relation: replaced by their clean means on corrupted prompts they bring the answer back.
3. The function vector of the four best heads makes zero-shot prompts work; that of four other heads does not.

Accuracies are those of the answer's first token. Perfect ten-shot accuracy alone proves nothing here: models with it
and without any function vector are easy to train.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from random import Random
from statistics import fmean

import torch
from torch import Tensor

from fvcore.activations import mean_head_activations
from fvcore.effects import average_indirect_effect, causal_indirect_effect
from fvcore.embedded.words import Relation, relations
from fvcore.heads import top_heads
from fvcore.injection import inject_logits
from fvcore.model.model import LanguageModel, load
from fvcore.model.tokenizer import BosFacts
from fvcore.prompts import Prompt, PromptTemplate, prompt_at_boundary
from fvcore.slots import SlotMap, dummy_labels, slot_map
from fvcore.trials import fixed as trials
from fvcore.trials.fixed import WordPair, labelled
from fvcore.vectors import function_vector

SEEDS = (0, 1)
N_SHOTS, N_TOP_HEADS, N_RANDOM_SETS = 10, 4, 20
N_CLEAN, N_CORRUPTED = 100, 40

MIN_TOP_AIE = {"llama": 0.1, "gpt2": 0.05}
"""By `model_type`: a projection bias and learned positions leave GPT-2's single heads less to say."""


@dataclass(frozen=True)
class GateResult:
    """The figures of one relation, prompts drawn with one seed. Accuracies and effects are between -1 and 1."""

    relation: str
    seed: int
    ten_shot: float
    zero_shot: float
    shuffled: float
    top_aie: float
    median_abs_aie: float
    required_aie: float
    heads: tuple[tuple[int, int], ...]
    layer: int
    injected: float
    random_heads: float
    injected_by_layer: tuple[float, ...]

    def failures(self) -> list[str]:
        """What the model lacks, one sentence each (empty: it passes)."""
        checks = (
            (self.ten_shot >= 0.95, f"ten-shot accuracy is {self.ten_shot:.3f}, expected at least 0.95"),
            (self.zero_shot <= 0.3, f"zero-shot accuracy is {self.zero_shot:.3f}, expected at most 0.3"),
            (self.shuffled <= 0.2, f"accuracy with shuffled labels is {self.shuffled:.3f}, expected at most 0.2"),
            (
                self.top_aie >= self.required_aie,
                f"largest AIE is {self.top_aie:.4f}, expected at least {self.required_aie}",
            ),
            (
                self.top_aie >= 10 * self.median_abs_aie,
                f"largest AIE is {self.top_aie:.4f}, expected ten times the median |AIE| {self.median_abs_aie:.4f}",
            ),
            (
                self.injected - self.random_heads >= 0.5,
                f"the function vector gives accuracy {self.injected:.3f}, other heads {self.random_heads:.3f}; "
                "expected a difference of at least 0.5",
            ),
        )
        return [sentence for holds, sentence in checks if not holds]


@dataclass(frozen=True)
class Asker:
    """Writes prompts of one relation for one model."""

    lm: LanguageModel
    template: PromptTemplate
    pairs: Sequence[WordPair]
    adds_bos: bool
    slots: Sequence[str]

    @classmethod
    def of(cls, lm: LanguageModel, relation: Relation) -> Asker:
        template = PromptTemplate(trials.PREFIXES, trials.SEPARATORS)
        pairs = [WordPair(input=question, output=answer).spaced for question, answer in relation.items()]
        adds_bos = BosFacts.of(lm.tokenizer).adds_bos
        return cls(lm, template, pairs, adds_bos, dummy_labels(lm.tokenizer, template, N_SHOTS, adds_bos))

    def draw(self, rng: Random) -> tuple[list[WordPair], WordPair]:
        """Demonstrations and a query, all different."""
        *demos, query = rng.sample(self.pairs, N_SHOTS + 1)
        return demos, query

    def prompt(self, demos: Sequence[WordPair], query: WordPair) -> Prompt:
        return prompt_at_boundary(self.lm.tokenizer, self.template.text(demos, query.input), query.output)

    def slot_map(self, demos: Sequence[WordPair], query: WordPair) -> SlotMap:
        return slot_map(self.lm.tokenizer, self.template, demos, query.input, self.slots, self.adds_bos)


def with_moved_labels(ask: Asker, n: int, rng: Random, fixed_points: bool) -> list[tuple[list[WordPair], WordPair]]:
    """Trials whose labels stand beside other questions; some in their place where `fixed_points` may be."""
    moved = []
    for demos, query in (ask.draw(rng) for _ in range(n)):
        orders = (rng.sample(range(N_SHOTS), N_SHOTS) for _ in count())
        order = next(order for order in orders if fixed_points or all(i != at for at, i in enumerate(order)))
        moved.append((labelled(demos, [demos[i].output for i in order]), query))
    return moved


def accuracies(
    lm: LanguageModel, prompts: Sequence[Prompt], vectors: Sequence[Tensor] = (), layers: Sequence[int] = ()
) -> list[float]:
    """Share of prompts whose most probable next token is the target: as they are, then with each vector at each layer."""
    logits = inject_logits(lm, [prompt.input_ids for prompt in prompts], vectors, layers, engine="exact")
    right = logits.argmax(dim=-1) == torch.tensor([prompt.target_id for prompt in prompts])[:, None]
    return [n / len(prompts) for n in right.sum(dim=0).tolist()]


def measure(lm: LanguageModel, seed: int) -> GateResult:
    """All figures of the antonyms. The same model and seed give the same figures."""
    rng = Random(seed)
    ask = Asker.of(lm, relations()["antonym"])

    clean = [ask.draw(rng) for _ in range(N_CLEAN)]
    shuffled = with_moved_labels(ask, N_CLEAN, rng, fixed_points=False)
    corrupted = with_moved_labels(ask, N_CORRUPTED, rng, fixed_points=True)
    alone = [ask.prompt([], query) for query in ask.pairs]

    means = mean_head_activations(lm, [(ask.prompt(*trial).input_ids, ask.slot_map(*trial)) for trial in clean])
    prompts = [ask.prompt(*trial) for trial in corrupted]
    cases = [
        (prompt.input_ids, prompt.target_id, ask.slot_map(*trial))
        for prompt, trial in zip(prompts, corrupted, strict=True)
    ]
    aie = average_indirect_effect(torch.stack([causal_indirect_effect(lm, *case, means) for case in cases]))
    ranked = [(head.layer, head.head) for head in top_heads(aie, aie.numel())]
    heads, others = ranked[:N_TOP_HEADS], ranked[N_TOP_HEADS:]

    zero_shot, *by_layer = accuracies(lm, alone, [function_vector(lm, means, heads)], range(lm.n_layers))
    layer = max(range(lm.n_layers), key=lambda at: by_layer[at])
    random_sets = [function_vector(lm, means, rng.sample(others, N_TOP_HEADS)) for _ in range(N_RANDOM_SETS)]
    return GateResult(
        relation="antonym",
        seed=seed,
        ten_shot=accuracies(lm, [ask.prompt(*trial) for trial in clean])[0],
        zero_shot=zero_shot,
        shuffled=accuracies(lm, [ask.prompt(*trial) for trial in shuffled])[0],
        top_aie=float(aie.max()),
        median_abs_aie=float(aie.abs().median()),
        required_aie=MIN_TOP_AIE[lm.spec.name],
        heads=tuple(heads),
        layer=layer,
        injected=by_layer[layer],
        random_heads=fmean(accuracies(lm, alone, random_sets, [layer])[1:]),
        injected_by_layer=tuple(by_layer),
    )


def main(name: str) -> int:
    lm = load(name)
    torch.set_num_threads(1)
    results = [measure(lm, seed) for seed in SEEDS]
    for result in results:
        for figure, value in asdict(result).items():
            print(f"{figure:18} {value}")
        print("failures          ", "; ".join(result.failures()) or "none")
    return int(any(result.failures() for result in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
