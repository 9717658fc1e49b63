"""Faults of station 3, mean head activations."""

import importlib.util
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, reduce
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from fvcore import activations
from fvcore.activations import head_activations
from fvcore.model import hooks
from fvcore.model.hooks import split_heads
from fvcore.model.model import LanguageModel
from fvcore.pipeline import Pipeline, profile_of
from fvcore.slots import SlotMap
from pytest_fvparity.candidates.adapters.torch_hooks import kept
from pytest_fvparity.selftest.catalogue import Observed, Outcome, Plant, Plants, observed, patching, replacing, varied
from pytest_fvparity.selftest.mean_heads import Station, average, batched, mean_of, pooled_by
from pytest_fvparity.selftest.rig import Rig, changed


@contextmanager
def read_outputs(lm: LanguageModel) -> Iterator[dict[int, Tensor]]:
    """`read_heads` with a hook on what leaves the projection instead of one on what enters it."""
    heads: dict[int, Tensor] = {}

    def read(layer: int, module: Any, args: Any, output: Tensor) -> None:
        heads[layer] = output.detach().clone().view(*output.shape[:-1], lm.n_heads, -1)

    with kept(*(lm.o_proj(layer).register_forward_hook(partial(read, layer)) for layer in range(lm.n_layers))):
        yield heads


@contextmanager
def read_attention(lm: LanguageModel) -> Iterator[dict[int, Tensor]]:
    """`read_heads` of what enters the attention, hidden states that nobody has attended to yet."""
    heads: dict[int, Tensor] = {}
    names = {
        lm.spec.out_proj_path(at).removesuffix(f".{lm.spec.out_proj_path_in_attn}"): at for at in range(lm.n_layers)
    }

    def see(name: str, side: str, tensor: Tensor | None, _: Any) -> None:
        if name in names and side == "input" and tensor is not None:
            heads[names[name]] = tensor.detach().clone().view(*tensor.shape[:-1], lm.n_heads, -1)

    with hooks.watch_modules(lm.hf, see):
        yield heads


def tiled_key_value_heads(rig: Rig) -> Observed:
    # sdpa groups heads inside torch; only an attention written out in Python can have them in the wrong order.
    lm = eager(rig.lm)
    with patch.object(sys.modules[type(lm.hf).__module__], "repeat_kv", lambda heads, n: heads.repeat(1, n, 1, 1)):
        return observed(rig.judge(rig.candidate(lm)))


def eager(lm: LanguageModel) -> LanguageModel:
    return changed(lm, lambda hf: hf.set_attn_implementation("eager"))


def reloaded(lm: LanguageModel, **options: Any) -> LanguageModel:
    """The model from a checkpoint that was stored as it is."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as directory:
        lm.hf.save_pretrained(directory)
        hf = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True, trust_remote_code=False, **options)
    return LanguageModel.wrap(hf, lm.tokenizer, lm.name)


def refusal(rig: Rig, lm: LanguageModel, field: str) -> Observed:
    """What is said of a candidate on `lm` that tells its own profile; it must name the field that differs."""
    seen = observed(rig.judge(rig.candidate(lm), profile_of(lm, rig.trials, rig.settings)))
    if seen.outcome is Outcome.REFUSED and f"{field}: golden" not in seen.message:
        return Observed(Outcome.ERRORS, None, f"refused without a word on {field}: {seen.message}")
    return seen


def loaded_without_dtype(rig: Rig) -> Observed:
    """A checkpoint stored in bf16: the golden is recorded in fp32, the candidate does not say a dtype."""
    stored = changed(rig.lm, in_bf16)
    return refusal(rig.on(reloaded(stored, dtype=torch.float32)), reloaded(stored), "dtype")


def in_bf16(hf: Any) -> None:
    hf.to(torch.bfloat16)


def eager_attention(rig: Rig) -> Observed:
    lm = eager(rig.lm)
    return varied(rig.judge(rig.candidate(lm), profile_of(lm, rig.trials, rig.settings)))


def tf32(rig: Rig) -> Observed:
    if not torch.cuda.is_available():
        return Observed(Outcome.NOT_RUN, None, "needs CUDA")
    on_gpu = rig.on(changed(rig.lm, lambda hf: hf.to("cuda")))
    with patch.object(torch.backends.cuda.matmul, "allow_tf32", True):
        return observed(on_gpu.judge(on_gpu.candidate()))


@torch.no_grad()
def to_four_bits(hf: Any, block: int = 16) -> None:
    """Every matrix rounded to 15 levels a block of 16, and the config saying so, as a quantised checkpoint's does."""
    for parameter in hf.parameters():
        if parameter.ndim == 2:
            blocks = parameter.view(-1, block)
            scale = blocks.abs().amax(dim=1, keepdim=True) / 7
            blocks.copy_((blocks / scale).round() * scale)
    hf.config.quantization_config = {"quant_method": "rounded", "load_in_4bit": True}


def quantised_nf4(rig: Rig) -> Observed:
    if not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None:
        return Observed(Outcome.NOT_RUN, None, "needs CUDA and bitsandbytes")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    return refusal(rig, reloaded(rig.lm, quantization_config=config), "quant")


def training_mode(rig: Rig) -> Observed:
    lm = changed(rig.lm)
    lm.hf.train()  # after wrapping, which switches to eval mode
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return observed(rig.judge(rig.candidate(lm)))


def running_mean(heads: list[Tensor]) -> Tensor:
    mean = heads[0].clone()
    for n, one in enumerate(heads[1:], start=2):
        mean += (one - mean) / n
    return mean


class UnclonedHeads(dict[tuple[int, ...], list[Tensor]]):
    """By prompt, for every one it has seen: layer for layer the very tensors that entered the projections."""

    def __call__(self, lm: LanguageModel, ids: list[int], slots: SlotMap) -> Tensor:
        if tuple(ids) not in self:
            self[tuple(ids)] = self._read(lm, ids)
        layers = self[tuple(ids)]
        for heads in layers:  # (1, token, head, d_head)
            for first, last in slots.idx_avg.values():
                heads[:, first] = heads[:, first : last + 1].mean(dim=1)
        return torch.cat(layers)[:, list(slots.idx_map)].transpose(1, 2)

    @staticmethod
    def _read(lm: LanguageModel, ids: list[int]) -> list[Tensor]:
        heads: list[Tensor] = []

        def hook(module: Any, args: tuple[Tensor, ...]) -> None:
            heads.append(split_heads(args[0], lm))  # no clone

        with kept(*(lm.o_proj(layer).register_forward_pre_hook(hook) for layer in range(lm.n_layers))):
            lm.logits(lm.ids(ids))
        return heads


def keeping_references(rig: Rig) -> Pipeline:
    return rig.candidate(mean_activations=mean_of(UnclonedHeads()))


def references_kept(rig: Rig) -> Observed:
    used, golden = keeping_references(rig), rig.artifacts
    # The first pass is somebody else's: a test of the user's own on the same candidate, a warm-up.
    used.mean_activations(golden["prompt_boundary"], golden["slot_map"])
    return observed(rig.judge(used))


def station(mean_activations: Station, look: Any = observed) -> Plant:
    return replacing(look, mean_activations=mean_activations)


PLANTS: dict[str, Plants] = {
    "F24": station(mean_of(regime="corrupted")),
    "F25": station(mean_of(lambda lm, ids, slots: head_activations(lm, ids, replace(slots, idx_avg={})))),
    "F26": station(pooled_by(lambda word: word.sum(dim=2))),
    "F26-last": station(pooled_by(lambda word: word[:, :, -1])),
    "F26-fp16": station(pooled_by(lambda word: average(word.half()).float())),
    "F27": patching(activations, "read_heads", read_outputs),
    "F27-told": patching(activations, "read_heads", read_outputs),
    "F27-attention": patching(activations, "read_heads", read_attention),
    "F28": patching(hooks, "split_heads", lambda x, lm: x.view(*x.shape[:-1], lm.n_heads, lm.d_model // lm.n_heads)),
    "F29": tiled_key_value_heads,
    "F30": loaded_without_dtype,
    "F30-undeclared": lambda rig: observed(rig.judge(rig.candidate(changed(rig.lm, in_bf16)))),
    "F31": eager_attention,
    "F32": tf32,
    "F33": lambda rig: refusal(rig, changed(rig.lm, to_four_bits), "quant"),
    "F33-nf4": quantised_nf4,
    "F34": training_mode,
    "F35": station(mean_of(mean=running_mean), varied),
    "F35-fp16": station(
        mean_of(mean=lambda heads: reduce(torch.add, [one.half() for one in heads]).float() / len(heads))
    ),
    "F36": (references_kept, lambda rig: observed(rig.judge(keeping_references(rig), repeat=2))),
    "F37": station(batched(lambda lm, ids, mask: lm.logits(ids))),
    "F37-positions": station(
        batched(lambda lm, ids, mask: lm.hf(input_ids=ids, attention_mask=mask.long(), use_cache=False))
    ),
}
