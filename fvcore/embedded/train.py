"""The recipe of the shipped models.

    python -m fvcore.embedded.train tiny-llama --out DIR [--seed 0]

writes a `from_pretrained` directory with a model card. The same seed, machine and library versions give the same
bytes. One thread: on small matrices more threads are slower, and they change the order of sums.
"""

import argparse
import math
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from fvcore.embedded import EMBEDDED, tokenizer
from fvcore.embedded.batches import Pairs, icl_batch
from fvcore.embedded.gate import SEEDS, GateResult, measure
from fvcore.embedded.objectives import (
    guess_loss,
    injection_loss,
    next_token_losses,
    probe_loss,
    relation_vectors,
)
from fvcore.embedded.recipe import RECIPES, Phase, Recipe
from fvcore.embedded.words import GROUPS, Relation, group_of, relations
from fvcore.formats import sha256_file, write_text
from fvcore.model.hooks import edit_heads
from fvcore.model.model import LanguageModel, deterministic, load

WEIGHTS = "model.safetensors"


def untrained(recipe: Recipe, vocabulary: Tokenizer) -> Any:
    """The recipe's architecture with random weights."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    bos, eos = map(vocabulary.token_to_id, tokenizer.SPECIALS[recipe.name])
    common = {
        "hidden_size": recipe.d_model,
        "num_hidden_layers": recipe.n_layers,
        "num_attention_heads": recipe.n_heads,
        "max_position_embeddings": recipe.n_positions,
        "vocab_size": vocabulary.get_vocab_size(),
        "initializer_range": recipe.initializer_range,
        "bos_token_id": bos,
        "eos_token_id": eos,
    }
    if recipe.name == "tiny-llama":
        llama = {"num_key_value_heads": recipe.n_kv_heads, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
        return LlamaForCausalLM(LlamaConfig(intermediate_size=recipe.d_mlp, **llama, **common))
    no_dropout = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    hf = GPT2LMHeadModel(GPT2Config(n_inner=recipe.d_mlp, **no_dropout, **common))
    with torch.no_grad():
        hf.transformer.wpe.weight.copy_(recipe.position_scale * sinusoids(recipe.n_positions, recipe.d_model))
    return hf


def sinusoids(n_positions: int, d_model: int) -> Tensor:
    """(position, d_model): sines and cosines of falling frequency (Vaswani et al. 2017, section 3.5)."""
    frequencies = 10_000.0 ** -torch.linspace(0, 1, d_model // 2)
    angles = torch.arange(n_positions)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate at `step` (from 1): linear warm-up, a cosine down to a fraction, and that fraction."""
    if step < recipe.warm_up:
        return recipe.learning_rate * step / recipe.warm_up
    progress = min(1.0, (step - recipe.warm_up) / max(1, recipe.n_steps - recipe.warm_up))
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return recipe.learning_rate * (recipe.final_rate + (1 - recipe.final_rate) * cosine)


def probe_weight(recipe: Recipe, step: int) -> float:
    """Full, then falling to zero over `probe_fade`."""
    begin, end = recipe.probe_fade
    left = (end - step / recipe.n_steps) / (end - begin)
    return recipe.probe_weight * min(1.0, max(0.0, left))


class Training:
    """A model on its way: weights, optimizer and the one source of random choices."""

    def __init__(self, recipe: Recipe) -> None:
        deterministic(recipe.seed)
        self.recipe = recipe
        self.rng = Random(recipe.seed)
        self.tables = relations()
        self.relations = list(self.tables.values())
        self.pairs = [list(relation.items()) for relation in self.relations]
        # How often a relation is drawn, relative to most.
        self.weights = [next((w for part, w in recipe.weights if part in name), 1.0) for name in self.tables]
        self.vocabulary = tokenizer.build(recipe.name)
        self.lm = LanguageModel.wrap(untrained(recipe, self.vocabulary))
        self.lm.hf.requires_grad_(True)
        self.probe = nn.Linear(recipe.d_model, len(self.relations))
        parameters = list(self.lm.hf.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
                {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
                {"params": self.probe.parameters(), "weight_decay": 0.0},
            ],
            lr=recipe.learning_rate,
            betas=recipe.betas,
        )

    def draw(self, n_texts: int, n_pairs: int) -> tuple[list[int], list[Pairs]]:
        """Texts of one relation each: relations by index, and pairs."""
        drawn = self.rng.choices(range(len(self.relations)), self.weights, k=n_texts)
        return drawn, [self.rng.sample(self.pairs[index], n_pairs) for index in drawn]

    def losses(self, phase: Phase, step: int) -> dict[str, Tensor]:
        """The weighted terms of the loss at `step`."""
        recipe, lm, rng = self.recipe, self.lm, self.rng
        drawn, contents = self.draw(phase.n_texts, phase.n_pairs)
        batch = icl_batch(self.vocabulary, contents, recipe.beginnings, rng)
        heads: list[Tensor] = []
        # An edit that changes nothing is given the heads as they are in the graph; `read_heads` gives detached copies.
        with edit_heads(lm, recipe.vector_layer, heads.append):
            output = lm.hf(input_ids=batch.input_ids, use_cache=False, output_hidden_states=True)
        answers, layout = next_token_losses(output.logits, batch)
        terms = {"answers": answers, "layout": recipe.layout_weight * layout}
        if weight := probe_weight(recipe, step):
            terms["probe"] = weight * probe_loss(self.probe, output.hidden_states[recipe.probe_layer], batch, drawn)
        if recipe.injection_weight and step > recipe.injection_start:
            vectors = relation_vectors(lm, recipe.vector_layer, heads[0], batch, drawn, recipe.n_skipped_answers)
            terms["injection"] = recipe.injection_weight * injection_loss(
                lm,
                self.vocabulary,
                vectors,
                self.relations,
                layer=rng.randint(0, recipe.last_injection_layer),
                n_questions=recipe.n_injected_questions,
                begin=rng.choice(recipe.beginnings),
                rng=rng,
            )
        if phase.n_shuffled:
            terms["guess"] = recipe.guess_weight * self.guess_loss(phase)
        return terms

    def guess_loss(self, phase: Phase) -> Tensor:
        """The loss on texts with shuffled answers."""
        drawn, contents = self.draw(phase.n_shuffled, phase.n_pairs)
        shuffled = []
        for pairs in contents:
            asked, answers = zip(*pairs, strict=True)
            shuffled.append(list(zip(asked, self.rng.sample(answers, len(answers)), strict=True)))
        guesses = [
            [self.guess(question, self.relations[index]) for question, _ in pairs[self.recipe.n_skipped_answers :]]
            for index, pairs in zip(drawn, shuffled, strict=True)
        ]
        batch = icl_batch(self.vocabulary, shuffled, self.recipe.beginnings, self.rng)
        return guess_loss(self.vocabulary, self.lm.logits(batch.input_ids), batch, guesses)

    def guess(self, question: str, relation: Relation) -> str:
        """The answer to `question` by a random relation of the same group."""
        group = group_of(relation)
        allowed = [
            table
            for name, table in self.tables.items()
            if group_of(table) == group and name != self.recipe.never_guessed
        ]
        return self.rng.choice(allowed)[question]

    def step(self, phase: Phase, step: int) -> dict[str, float]:
        """One update; returns the terms of the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.recipe, step)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            terms = self.losses(phase, step)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(terms.values())).sum().backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.lm.hf.parameters(), self.recipe.max_gradient_norm)
        self.optimizer.step()
        return {name: float(term.detach()) for name, term in terms.items()}


def train(recipe: Recipe, report: Callable[[int, dict[str, float]], None] | None = None) -> Any:
    """The trained model, as a Hugging Face causal LM."""
    training = Training(recipe)
    phases = [phase for phase in (*recipe.phases, recipe.settling) for _ in range(phase.steps)]
    for step, phase in enumerate(phases, start=1):
        terms = training.step(phase, step)
        if report:
            report(step, terms)
    return training.lm.hf


def card(hf: Any, recipe: Recipe, directory: Path, results: Sequence[GateResult]) -> str:
    """The text of `README.md`, its words in `card.md.j2`: what the model is, how it was made, what it can do.

    `directory` already holds the weights.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    words = Environment(loader=PackageLoader("fvcore.embedded", "."), undefined=StrictUndefined, trim_blocks=True)
    words.filters["figure"] = _figure
    return words.get_template("card.md.j2").render(
        recipe=recipe,
        architecture={"llama": "Llama architecture", "gpt2": "GPT-2 architecture"}[hf.config.model_type],
        n_parameters=hf.num_parameters(),
        n_vocabulary=hf.config.vocab_size,
        relations=relations(),
        groups=", ".join(f"{len(words)} {group}s" for group, words in GROUPS.items()),
        probe_end=round(recipe.probe_fade[1] * recipe.n_steps),
        version=version,
        weights=WEIGHTS,
        sha256=sha256_file(directory / WEIGHTS),
        results=results,
    )


def _figure(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(str(item) if isinstance(item, tuple) else _figure(item) for item in value)
    return f"{value:.3f}" if isinstance(value, float) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model that ships with the project.")
    parser.add_argument("name", choices=EMBEDDED)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    started = time.monotonic()

    def report(step: int, terms: dict[str, float]) -> None:
        if step % 50 == 0:
            figures = "  ".join(f"{name} {value:.3f}" for name, value in terms.items())
            print(f"step {step}  {time.monotonic() - started:.0f} s  {figures}", flush=True)

    recipe = RECIPES[options.name](options.seed)
    hf = train(recipe, report)
    options.out.mkdir(parents=True, exist_ok=True)
    hf.save_pretrained(options.out)
    tokenizer.save(recipe.name, options.out, recipe.n_positions)
    lm = load(str(options.out))
    write_text(options.out / "README.md", card(hf, recipe, options.out, [measure(lm, seed) for seed in SEEDS]))


if __name__ == "__main__":
    main()
