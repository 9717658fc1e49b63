"""The model and the prompts that every library is timed on: the same in every process, on every machine.

Weights are drawn, not stored: each process draws them itself from one seed, so that a model of any size needs neither a
download nor a disk. Random weights of equal size give all heads about the same effect, and then rounding is most of what
two libraries differ by; the heads' writing weights are scaled by a log-normal factor each, as in trained models few heads
matter much.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from fvcore import embedded
from fvcore.activations import mean_head_activations
from fvcore.fast.engines import why_not_fast
from fvcore.fast.sweep import Case
from fvcore.model import model as models
from fvcore.model.model import DTYPES, LanguageModel, ModelError
from fvcore.pipeline import Pipeline, Settings
from fvcore.prompts import sample_trials
from fvcore.slots import SlotMap
from fvcore.trials import fixed as trials

TOKENIZER = "tiny-llama"
PAIRS = Path(__file__).parents[1] / "datasets/tiny_antonym/raw/tiny_antonym.json"
N_SHOTS = 12
PROMPT_TOKENS = 108
N_DRAWN = 10
SEED = 0


class Size(BaseModel):
    """A Llama of some shape. `shipped` ones have weights of their own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    n_layers: int
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    vocab_size: int
    shipped: bool = False

    @classmethod
    def named(cls, name: str) -> Size:
        """`12x768` (layers x width: heads of 64, vocabulary of 32000), `llama-3.1-8b`, or a shipped model."""
        if name in embedded.EMBEDDED:
            config = AutoConfig.from_pretrained(embedded.path_of(name), local_files_only=True)
            return cls(
                name=name,
                n_layers=config.num_hidden_layers,
                d_model=config.hidden_size,
                n_heads=config.num_attention_heads,
                n_kv_heads=config.num_key_value_heads,
                d_ff=config.intermediate_size,
                vocab_size=config.vocab_size,
                shipped=True,
            )
        if name == "llama-3.1-8b":
            return cls(name=name, n_layers=32, d_model=4096, n_heads=32, n_kv_heads=8, d_ff=14336, vocab_size=128256)
        shape = re.fullmatch(r"(\d+)x(\d+)", name)
        if shape is None or int(shape[2]) % 64 or not int(shape[1]):
            raise ValueError(
                f"unknown size {name!r}; expected tiny-llama, llama-3.1-8b, or layers x width such as 12x768 (a width of "
                "whole heads of 64)"
            )
        n_layers, width = int(shape[1]), int(shape[2])
        return cls(
            name=name,
            n_layers=n_layers,
            d_model=width,
            n_heads=width // 64,
            n_kv_heads=width // 64,
            d_ff=-(-8 * width // 3 // 64) * 64,
            vocab_size=32000,
        )

    @property
    def all_heads(self) -> int:
        return self.n_layers * self.n_heads

    def with_heads(self, n_heads: int) -> Size:
        """As many weights, in more and narrower heads or fewer and wider ones."""
        if self.d_model % (2 * n_heads):
            raise ValueError(f"{self.name}: a width of {self.d_model} has no {n_heads} heads of even width")
        return self.model_copy(update={"n_heads": n_heads, "n_kv_heads": n_heads})

    def config(self) -> Any:
        return AutoConfig.for_model(
            "llama",
            vocab_size=self.vocab_size,
            hidden_size=self.d_model,
            num_hidden_layers=self.n_layers,
            num_attention_heads=self.n_heads,
            num_key_value_heads=self.n_kv_heads,
            intermediate_size=self.d_ff,
            max_position_embeddings=2048,
            tie_word_embeddings=False,
        )


def model(size: Size, device: str, dtype: str, folder: Path) -> LanguageModel:
    """The model of a size; `folder` holds its config, for libraries that ask for a model's directory."""
    if size.shipped:
        return models.load(size.name, device=device, dtype=dtype)
    models.deterministic(SEED)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(size.config(), dtype=DTYPES[dtype])
    _draw(hf, size)
    return LanguageModel.wrap(hf, models.load_tokenizer(TOKENIZER), size.name, folder)


@torch.no_grad()
def _draw(hf: Any, size: Size) -> None:
    """Every matrix keeps the size of what it is given; embeddings have size 1."""
    draw = torch.Generator(hf.device).manual_seed(SEED)
    for name, weight in hf.named_parameters():
        if weight.ndim == 2:
            weight.normal_(0, 1.0 if "embed" in name else weight.shape[1] ** -0.5, generator=draw)
    draw = torch.Generator().manual_seed(SEED)
    for block in hf.model.layers:
        weight = block.self_attn.o_proj.weight
        weight.view(size.d_model, size.n_heads, -1).mul_(torch.randn(size.n_heads, 1, generator=draw).exp().to(weight))


def fixed_trials(n: int) -> trials.FixedTrials:
    """Trials of 12 shots; the first is the one that is nearest to a prompt of 108 tokens."""
    tokenizer = models.load_tokenizer(TOKENIZER)
    meta = trials.Meta(
        dataset_json="datasets/tiny_antonym/raw/tiny_antonym.json",
        n_trials=max(n, N_DRAWN),
        n_shots=N_SHOTS,
        model_name_for_tokenizer=TOKENIZER,
        model_prepend_bos=True,
    )
    file = sample_trials(tokenizer, trials.read_pairs(PAIRS), meta)

    def distance(record: trials.TrialRecord) -> int:
        return abs(len(tokenizer(record.corrupted_prompt_str).input_ids) - PROMPT_TOKENS)

    nearest = sorted(file.trials, key=distance)[:n]
    kept = file.model_copy(update={"meta": meta.model_copy(update={"n_trials": n}), "trials": nearest})
    return trials.FixedTrials("benchmark", "", kept)


def cases_and_means(lm: LanguageModel, fixed: trials.FixedTrials) -> tuple[list[Case], Tensor]:
    """Corrupted prompts, and what heads are replaced by: (layer, head, slot, d_head).

    Of a shipped model the means over the clean prompts. Of drawn weights drawn ones: such heads do about the same on all
    prompts, and their means would change little; how long a sweep takes does not depend on it.
    """
    if reason := why_not_fast(lm):  # asked once a model: here, where nothing is timed
        raise ModelError(f"{lm.name}: engine fast, which is measured, does not hold here: {reason}")
    stations = Pipeline(lm, fixed, Settings(edit_layer=0, n_top_heads=1, engine="exact"))

    def prompts(regime: str) -> list[tuple[Sequence[int], SlotMap]]:
        return [(stations.prompt(trial, regime).input_ids, stations.slots(trial, regime)) for trial in fixed.trials]

    cases: list[Case] = [
        (ids, trial.target_id, slots) for trial, (ids, slots) in zip(fixed.trials, prompts("corrupted"), strict=True)
    ]
    if lm.name in embedded.EMBEDDED:
        return cases, mean_head_activations(lm, prompts("clean"))
    shape = (lm.n_layers, lm.n_heads, len(stations.dummy_labels), lm.d_head)
    return cases, torch.randn(shape, generator=torch.Generator().manual_seed(SEED))
