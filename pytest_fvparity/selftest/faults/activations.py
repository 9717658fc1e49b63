"""Faults of station 3, mean head activations."""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast
from unittest.mock import patch

import torch
from torch import Tensor

from fvcore import activations
from fvcore.activations import head_activations
from fvcore.artifacts import Artifact
from fvcore.model import hooks
from fvcore.model.hooks import read_heads, split_heads
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, profile_of, slots_of, trial_keys
from fvcore.slots import SlotMap
from pytest_fvparity.parity.implementation import Implementation
from pytest_fvparity.selftest.bed import Bed
from pytest_fvparity.selftest.catalogue import Observed, Outcome, candidate_fault, fault, observed, varied
from pytest_fvparity.selftest.copies import bed_in, bed_on, changed

KEY = "mean_activations"

HeadsOf = Callable[[LanguageModel, list[int], SlotMap], Tensor]
Station = Callable[[Pipeline, Artifact, Artifact], Artifact]
Pool = Callable[[Tensor], Tensor]


def mean_of(heads_of: HeadsOf, regime: str = "clean") -> Station:
    """The station, with `heads_of` giving one prompt's heads as (layer, head, slot, d_head)."""

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        heads = [
            heads_of(self.lm, ids_of(prompts, key, regime), slots_of(slot_map, key, regime))
            for key in trial_keys(prompts)
        ]
        return {KEY: torch.stack(heads).mean(dim=0)}

    return mean_activations


def ids_of(prompts: Artifact, key: str, regime: str) -> list[int]:
    return cast("list[int]", prompts[f"{key}/{regime}/input_ids"])


def heads_by_token(lm: LanguageModel, ids: list[int]) -> Tensor:
    """(layer, head, token, d_head)"""
    with read_heads(lm) as heads:
        lm.logits(lm.ids(ids))
    return torch.cat([heads[layer] for layer in range(lm.n_layers)]).transpose(1, 2)


def to_slots(by_token: Tensor, slots: SlotMap, pool: Pool) -> Tensor:
    """(layer, head, token, d_head) -> (layer, head, slot, d_head), a word's tokens pooled."""
    by_slot = by_token[:, :, list(slots.idx_map)]
    for first, last in slots.idx_avg.values():
        by_slot[:, :, slots.idx_map[first]] = pool(by_token[:, :, first : last + 1])
    return by_slot


def average(word: Tensor) -> Tensor:
    return word.mean(dim=2)


# ---------------------------------------------------------------- which tokens, and how they are pooled


@candidate_fault(
    "F24",
    "mean over the corrupted prompts",
    "the station reads the corrupted prompts and their slot maps",
    KEY,
    "every slot after the first corrupted label, the last one too",
)
def corrupted_regime(bed: Bed) -> Implementation:
    return bed.candidate(mean_activations=mean_of(head_activations, regime="corrupted"))


@candidate_fault(
    "F25",
    "first token instead of the average for words of several tokens",
    "the averaging ranges are dropped",
    KEY,
    "demonstration and query slots only; the last slot is equal, so later keys would pass",
)
def first_token_only(bed: Bed) -> Implementation:
    def heads_of(lm: LanguageModel, ids: list[int], slots: SlotMap) -> Tensor:
        return head_activations(lm, ids, replace(slots, idx_avg={}))

    return bed.candidate(mean_activations=mean_of(heads_of))


def pooled_by(pool: Pool) -> Station:
    return mean_of(lambda lm, ids, slots: to_slots(heads_by_token(lm, ids), slots, pool))


@candidate_fault(
    "F26",
    "sum instead of the average for words of several tokens",
    "a word's tokens are summed",
    KEY,
    "demonstration and query slots only",
)
def summed_words(bed: Bed) -> Implementation:
    return bed.candidate(mean_activations=pooled_by(lambda word: word.sum(dim=2)))


@candidate_fault(
    "F26-last",
    "last token instead of the average for words of several tokens",
    "a word's last token stands for it",
    KEY,
    "demonstration and query slots only",
)
def last_token_only(bed: Bed) -> Implementation:
    return bed.candidate(mean_activations=pooled_by(lambda word: word[:, :, -1]))


@candidate_fault(
    "F26-fp16",
    "words of several tokens averaged in half precision",
    "a word's tokens are cast to fp16, averaged, and cast back",
    KEY,
    "demonstration and query slots only, by about 1e-3",
)
def words_averaged_in_half(bed: Bed) -> Implementation:
    return bed.candidate(mean_activations=pooled_by(lambda word: average(word.half()).float()))


# ---------------------------------------------------------------- what is read, and how it is split into heads


@contextmanager
def read_outputs(lm: LanguageModel) -> Iterator[dict[int, Tensor]]:
    """`read_heads` with a hook on what leaves the projection instead of one on what enters it."""
    heads: dict[int, Tensor] = {}

    def hook_for(layer: int) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Tensor) -> None:
            heads[layer] = output.detach().clone().view(*output.shape[:-1], lm.n_heads, -1)

        return hook

    handles = [lm.o_proj(layer).register_forward_hook(hook_for(layer)) for layer in range(lm.n_layers)]
    try:
        yield heads
    finally:
        for handle in handles:
            handle.remove()


@candidate_fault(
    "F27",
    "the projection's output captured instead of its input",
    "a forward hook in place of the forward pre-hook",
    KEY,
    "every slot; another head width where heads x width is not d_model",
)
@contextmanager
def projection_output(bed: Bed) -> Iterator[Implementation]:
    with patch.object(activations, "read_heads", read_outputs):
        yield bed.candidate()


@candidate_fault(
    "F28",
    "head width taken as hidden size / number of heads",
    "heads are split as d_model // n_heads",
    KEY,
    "the view into heads has the wrong size",
    Outcome.ERRORS,
    families=("qwen3",),  # everywhere else heads x width is d_model and the mistake is none
)
@contextmanager
def width_from_hidden_size(bed: Bed) -> Iterator[Implementation]:
    def split(x: Tensor, lm: LanguageModel) -> Tensor:
        return x.view(*x.shape[:-1], lm.n_heads, lm.d_model // lm.n_heads)

    with patch.object(hooks, "split_heads", split):
        yield bed.candidate()


@candidate_fault(
    "F29",
    "key and value heads repeated in the wrong order",
    "the model's own attention tiles its key and value heads (0 1 0 1) instead of repeating each (0 0 1 1)",
    KEY,
    "every slot but those that attend to themselves alone",
    families=("llama", "qwen3"),  # the others have as many key and value heads as heads
)
@contextmanager
def tiled_key_value_heads(bed: Bed) -> Iterator[Implementation]:
    def repeat_kv(heads: Tensor, n_repeats: int) -> Tensor:
        return heads.repeat(1, n_repeats, 1, 1)

    # sdpa groups heads inside torch; only an attention written out in Python can have them in the wrong order.
    lm = with_attention(bed.lm, "eager")
    with patch.object(sys.modules[type(lm.hf).__module__], "repeat_kv", repeat_kv):
        yield Pipeline(lm, bed.trials, bed.settings)


# ---------------------------------------------------------------- how the model computes


def load_checkpoint(directory: str, like: LanguageModel, **options: Any) -> LanguageModel:
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, **options)
    return LanguageModel.wrap(hf, like.tokenizer, like.name)


def loaded_without_dtype(bed: Bed) -> tuple[Bed, LanguageModel]:
    """A checkpoint stored in bf16: the golden is recorded in fp32, the candidate does not say a dtype."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        bed_in(bed, torch.bfloat16).lm.hf.save_pretrained(directory)
        golden = bed_on(bed, load_checkpoint(directory, bed.lm, dtype=torch.float32))
        return golden, load_checkpoint(directory, bed.lm)


def refusal(bed: Bed, lm: LanguageModel, field: str) -> Observed:
    """What is said of a candidate on `lm` that tells its own profile; it must name the field that differs."""
    seen = observed(bed.judge(Pipeline(lm, bed.trials, bed.settings), profile_of(lm, bed.trials, bed.settings)))
    if seen.outcome is Outcome.REFUSED and f"{field}: golden" not in seen.message:
        return Observed(Outcome.ERRORS, None, f"refused without a word on {field}: {seen.message}")
    return seen


@fault(
    "F30",
    "parameters silently in bf16",
    "a bf16 checkpoint loaded without a dtype; golden from the same files in fp32",
    Outcome.REFUSED,
    signature="the profile names the dtype that was really loaded",
)
def silently_bf16(bed: Bed) -> Observed:
    golden, lm = loaded_without_dtype(bed)
    return refusal(golden, lm, "dtype")


@candidate_fault(
    "F30-undeclared",
    "parameters silently in bf16, under a profile that says fp32",
    "the same candidate, its profile not measured but copied from the golden",
    KEY,
    "every slot, by 1e-3 to 0.3",
)
def bf16_undeclared(bed: Bed) -> Implementation:
    lm = changed(bed.lm, lambda hf: hf.to(torch.bfloat16))
    return Pipeline(lm, bed.trials, bed.settings)


def with_attention(lm: LanguageModel, implementation: str) -> LanguageModel:
    return changed(lm, lambda hf: hf.set_attn_implementation(implementation))


@fault(
    "F31",
    "another attention implementation",
    "the golden with sdpa, the candidate with eager attention",
    Outcome.PASSES,
    signature="a legal variation, about 1e-6",
    families=("llama", "gpt2", "gpt_neox", "qwen3"),  # transformers has no sdpa for gptj
)
def other_attention(bed: Bed) -> Observed:
    lm = with_attention(bed.lm, "eager")
    return varied(bed.judge(Pipeline(lm, bed.trials, bed.settings), profile_of(lm, bed.trials, bed.settings)))


@fault(
    "F32",
    "TF32 in matrix products on a GPU",
    "golden on CUDA in fp32, candidate with allow_tf32",
    Outcome.FAILS,
    KEY,
    "every slot, about 1e-3",
)
def tf32(bed: Bed) -> Observed:
    if not torch.cuda.is_available():
        return Observed(Outcome.NOT_RUN, None, "needs CUDA")
    on_gpu = bed_on(bed, changed(bed.lm, lambda hf: hf.to("cuda")))
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        return observed(on_gpu.judge(on_gpu.candidate()))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


@torch.no_grad()
def to_four_bits(hf: Any, block: int = 16) -> None:
    """Every matrix rounded to 15 levels a block of 16, and the config saying so, as a quantised checkpoint's does."""
    for parameter in hf.parameters():
        if parameter.ndim == 2:
            blocks = parameter.view(-1, block)
            scale = blocks.abs().amax(dim=1, keepdim=True) / 7
            blocks.copy_((blocks / scale).round() * scale)
    hf.config.quantization_config = {"quant_method": "rounded", "load_in_4bit": True}


@fault(
    "F33",
    "four-bit weights on one side only",
    "the candidate's weights are rounded to four bits, and its profile says so",
    Outcome.REFUSED,
    signature="the profile names the quantisation",
)
def quantised(bed: Bed) -> Observed:
    return refusal(bed, changed(bed.lm, to_four_bits), "quant")


@fault(
    "F33-nf4",
    "four-bit weights on one side only, with the library that does it",
    "the candidate is loaded in NF4 with bitsandbytes",
    Outcome.REFUSED,
    signature="the profile names the quantisation",
)
def quantised_nf4(bed: Bed) -> Observed:
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        return Observed(Outcome.NOT_RUN, None, "needs CUDA and bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    with tempfile.TemporaryDirectory() as directory:
        bed.lm.hf.save_pretrained(directory)
        return refusal(bed, load_checkpoint(directory, bed.lm, quantization_config=config), "quant")


@candidate_fault(
    "F34",
    "dropout active",
    "the candidate's model is left in training mode",
    KEY,
    "every slot; two passes differ",
    families=("gpt2",),  # the others' default configs have no dropout, and training mode changes nothing
)
@contextmanager
def training_mode(bed: Bed) -> Iterator[Implementation]:
    lm = changed(bed.lm, lambda hf: None)
    lm.hf.train()  # after wrapping, which switches to eval mode
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield Pipeline(lm, bed.trials, bed.settings)


# ---------------------------------------------------------------- the mean over prompts


def clean_heads(pipeline: Pipeline, prompts: Artifact, slot_map: Artifact) -> list[Tensor]:
    return [
        head_activations(pipeline.lm, ids_of(prompts, key, "clean"), slots_of(slot_map, key, "clean"))
        for key in trial_keys(prompts)
    ]


@fault(
    "F35",
    "running mean",
    "m += (x - m) / n over the prompts, in fp32",
    Outcome.PASSES,
    signature="a legal variation, up to 1e-6",
)
def running_mean(bed: Bed) -> Observed:
    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        first, *others = clean_heads(self, prompts, slot_map)
        mean = first.clone()
        for n, heads in enumerate(others, start=2):
            mean += (heads - mean) / n
        return {KEY: mean}

    return varied(bed.judge(bed.candidate(mean_activations=mean_activations)))


@candidate_fault(
    "F35-fp16",
    "mean accumulated in half precision",
    "the sum over prompts is kept in fp16",
    KEY,
    "every slot, by about 1e-3",
)
def accumulated_in_half(bed: Bed) -> Implementation:
    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        heads = clean_heads(self, prompts, slot_map)
        total = torch.zeros_like(heads[0], dtype=torch.float16)
        for one in heads:
            total += one.half()
        return {KEY: total.float() / len(heads)}

    return bed.candidate(mean_activations=mean_activations)


class UnclonedHeads:
    """Heads by layer, the very tensors that entered the projections, kept for every prompt it has seen."""

    def __init__(self) -> None:
        self.kept: dict[tuple[int, ...], list[Tensor]] = {}

    def __call__(self, lm: LanguageModel, ids: list[int], slots: SlotMap) -> Tensor:
        if tuple(ids) not in self.kept:
            self.kept[tuple(ids)] = self._read(lm, ids)
        layers = self.kept[tuple(ids)]
        for heads in layers:  # (1, token, head, d_head)
            for first, last in slots.idx_avg.values():
                heads[:, first] = heads[:, first : last + 1].mean(dim=1)
        return torch.cat(layers)[:, list(slots.idx_map)].transpose(1, 2)

    @staticmethod
    def _read(lm: LanguageModel, ids: list[int]) -> list[Tensor]:
        kept: list[Tensor] = []

        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            kept.append(split_heads(args[0], lm))  # no clone

        handles = [lm.o_proj(layer).register_forward_pre_hook(hook) for layer in range(lm.n_layers)]
        try:
            lm.logits(lm.ids(ids))
        finally:
            for handle in handles:
                handle.remove()
        return kept


def keeping_references(bed: Bed) -> Implementation:
    return bed.candidate(mean_activations=mean_of(UnclonedHeads()))


@fault(
    "F36",
    "a hook keeps a reference that is edited in place later",
    "tensors are kept without clone and words averaged inside them; judged on the candidate's second pass, and asked twice",
    Outcome.FAILS,
    KEY,
    "words of several tokens, averaged twice; the first pass is right",
)
def reference_kept(bed: Bed) -> Observed:
    used, golden = keeping_references(bed), bed.golden.artifacts
    # The first pass is somebody else's: a test of the user's own on the same candidate, a warm-up.
    used.mean_activations(golden["prompt_boundary"], golden["slot_map"])
    seen = [observed(bed.judge(used)), observed(bed.judge(keeping_references(bed), repeat=2))]
    return next((one for one in seen if (one.outcome, one.key) != (Outcome.FAILS, KEY)), seen[0])


# ---------------------------------------------------------------- several prompts in one batch


def batched(forward: Callable[[LanguageModel, Tensor, Tensor], None]) -> Station:
    """The station with all clean prompts in one left-padded batch; `forward` takes ids and mask."""

    def mean_activations(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
        keys = trial_keys(prompts)
        ids, mask = left_padded([ids_of(prompts, key, "clean") for key in keys])
        with read_heads(self.lm) as heads:
            forward(self.lm, ids, mask)
        means = []
        for row, key in enumerate(keys):
            by_token = torch.stack([heads[layer][row, mask[row]] for layer in range(self.lm.n_layers)]).transpose(1, 2)
            means.append(to_slots(by_token, slots_of(slot_map, key, "clean"), average))
        return {KEY: torch.stack(means).mean(dim=0)}

    return mean_activations


def left_padded(prompts: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
    """ids (prompt, token), padded with token 0, and the mask of what is no padding."""
    width = max(map(len, prompts))
    pads = [width - len(ids) for ids in prompts]
    ids = torch.tensor([[0] * pad + ids for pad, ids in zip(pads, prompts, strict=True)])
    return ids, torch.arange(width) >= torch.tensor(pads).unsqueeze(1)


@candidate_fault(
    "F37",
    "prompts batched with padding and no attention mask",
    "all clean prompts in one left-padded batch, the mask forgotten",
    KEY,
    "every prompt shorter than the longest",
)
def batch_without_mask(bed: Bed) -> Implementation:
    def forward(lm: LanguageModel, ids: Tensor, mask: Tensor) -> None:
        lm.logits(ids)

    return bed.candidate(mean_activations=batched(forward))


@candidate_fault(
    "F37-positions",
    "prompts batched with left padding and positions counted from the padding",
    "all clean prompts in one left-padded batch, with the mask but without position ids",
    KEY,
    "every prompt shorter than the longest",
    families=("gpt2",),  # the others' positions are relative, and a common shift changes nothing
)
def batch_without_positions(bed: Bed) -> Implementation:
    def forward(lm: LanguageModel, ids: Tensor, mask: Tensor) -> None:
        lm.hf(input_ids=ids, attention_mask=mask.long(), use_cache=False)

    return bed.candidate(mean_activations=batched(forward))
