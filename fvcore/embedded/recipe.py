"""Every value that decides the weights of a shipped model, and why it has that value."""

from collections.abc import Callable
from dataclasses import dataclass

from fvcore.embedded.tokenizer import GPT2_EOS


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A number of steps on texts of one size, with some more whose answers are shuffled."""

    steps: int
    n_texts: int
    n_pairs: int
    n_shuffled: int = 0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Every value that decides the weights, and why it has that value."""

    name: str
    seed: int = 0

    # Six layers leave room for a curve over layers; 24 heads make the choice of top heads a choice.
    n_layers: int = 6
    n_heads: int = 4
    d_model: int = 128
    # Llama: fewer key-value heads than heads, so that grouped attention is exercised.
    n_kv_heads: int = 2
    d_mlp: int
    n_positions: int
    # Larger than the usual .02: at this width it shortens the first plateau.
    initializer_range: float = 0.05
    # GPT-2: positions start as sinusoids of about the tokens' size and are learned from there. From random ones it
    # took 400 steps to learn to look back by a few tokens.
    position_scale: float = 0.1

    # Short texts first: they teach the pairing at half the cost. The long ones bring ten-shot prompts and, for
    # GPT-2, the learned positions of those.
    phases: tuple[Phase, ...] = (
        Phase(steps=500, n_texts=64, n_pairs=5),
        Phase(steps=200, n_texts=32, n_pairs=11),
    )
    # What to guess when the pairs make no sense comes last and briefly: with 5 % of shuffled answers from the start
    # no single head mattered, the largest AIE was 56 times smaller.
    settling: Phase = Phase(steps=50, n_texts=32, n_pairs=11, n_shuffled=16)
    beginnings: tuple[str, ...]
    # How often a relation is seen, if not as often as the others. Without demonstrations a model answers by the
    # commonest relation, and that must not be the one that is measured.
    weights: tuple[tuple[str, float], ...] = (("antonym", 0.75), ("letter", 0.5), ("number", 0.5))
    learning_rate: float = 2e-3
    final_rate: float = 0.1  # of the learning rate: where the cosine ends, and while settling
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    warm_up: int = 100
    max_gradient_norm: float = 1.0

    # Layout is learned in a few steps and should not outweigh the answers.
    layout_weight: float = 0.1
    # The probe is there to start pairing, not to stay: it fades between these shares of the steps. It reads what
    # enters block 2, so relations are known there and heads of blocks 2 and 3 come to carry them: middle layers, with
    # blocks left before and after. After the first block it put them into block 1, and GPT-2 did not find the pairing.
    probe_weight: float = 1.0
    probe_layer: int = 2
    probe_fade: tuple[float, float] = (0.55, 0.75)
    # 0: function vectors emerge or do not. Otherwise the heads of `vector_layer` are trained to carry them, a middle layer
    # with two layers before it to read the pairs; injecting at any block up to the last named makes the vector readable
    # over a range of layers and useless in the last ones.
    injection_weight: float = 0.0
    injection_start: int = 200
    vector_layer: int = 2
    last_injection_layer: int = 3
    n_injected_questions: int = 6
    # Nonsense is answered by any relation of the group but this one. Left alone, a model falls back on the relation
    # it learned last, which is antonym: the only one without a rule.
    guess_weight: float = 0.5
    never_guessed: str = "antonym"
    # The first answers of a text, whose demonstrations do not yet tell the relation, say nothing about it.
    n_skipped_answers: int = 3

    @property
    def n_steps(self) -> int:
        """Steps before settling."""
        return sum(phase.steps for phase in self.phases)


RECIPES: dict[str, Callable[[int], Recipe]] = {
    "tiny-llama": lambda seed: Recipe(name="tiny-llama", seed=seed, d_mlp=384, n_positions=512, beginnings=("",)),
    "tiny-gpt2": lambda seed: Recipe(
        name="tiny-gpt2",
        seed=seed,
        d_mlp=512,
        n_positions=256,
        # Half of the texts begin with the end-of-text token: one way to use GPT-2 puts it in front of a prompt.
        beginnings=("", GPT2_EOS),
        # Learned positions: those beyond five pairs need steps of their own.
        phases=(Phase(steps=600, n_texts=64, n_pairs=5), Phase(steps=700, n_texts=32, n_pairs=11)),
        settling=Phase(steps=125, n_texts=32, n_pairs=11, n_shuffled=16),
        # Without it ten-shot accuracy is 1.0 as well, but the relation is spread over many heads: the largest AIE was
        # 0.03 and the vector of the best four did nothing (0.09, other heads 0.07).
        injection_weight=0.5,
    ),
}
