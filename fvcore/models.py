"""LanguageModel: a loaded decoder and its tokenizer, with its parts under the names the papers use."""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fvcore import embedded
from fvcore.model_spec import ModelError as ModelError
from fvcore.model_spec import ModelSpec, spec_for

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class LanguageModel:
    """A decoder in eval mode and its tokenizer.

    `source` is the directory the weights came from, or None for a model wrapped in memory.
    """

    hf: Any
    tokenizer: Any
    spec: ModelSpec
    name: str = "in memory"
    source: Path | None = None
    # What takes long to find out (digests read every weight) is kept here.
    known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def wrap(cls, hf: Any, tokenizer: Any = None, name: str = "in memory", source: Path | None = None) -> LanguageModel:
        """Take a Hugging Face causal LM as it is; it is put into eval mode and its gradients are switched off."""
        spec = spec_for(hf.config.model_type)
        model = cls(hf.eval().requires_grad_(False), tokenizer, spec, name, source)
        _resolve(hf, spec.blocks_path, "blocks_path", spec)
        for layer in range(model.n_layers):
            _resolve(hf, spec.out_proj_path(layer), "out_proj path", spec)
        return model

    @cached_property
    def blocks(self) -> nn.ModuleList:
        blocks = self.hf.get_submodule(self.spec.blocks_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def o_proj(self, layer: int) -> nn.Module:
        module: nn.Module = self.hf.get_submodule(self.spec.out_proj_path(layer))
        return module

    @property
    def n_layers(self) -> int:
        return len(self.blocks)

    @property
    def n_heads(self) -> int:
        return int(self.hf.config.num_attention_heads)

    @property
    def d_model(self) -> int:
        return int(self.hf.config.hidden_size)

    @cached_property
    def d_head(self) -> int:
        """Width of one head; n_heads * d_head need not be d_model."""
        explicit = getattr(self.hf.config, "head_dim", None)
        return int(explicit or self.d_model // self.n_heads)

    @property
    def vocab_size(self) -> int:
        return int(self.hf.config.vocab_size)

    @property
    def itemsize(self) -> int:
        """Bytes of one number of the weights."""
        return int(next(self.hf.parameters()).element_size())

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.hf.parameters()).device
        return device

    @property
    def dtype(self) -> str:
        """The dtype the weights really have: fp32, fp16 or bf16."""
        loaded = next(self.hf.parameters()).dtype
        return next((name for name, dtype in DTYPES.items() if dtype == loaded), str(loaded))

    @property
    def attn_implementation(self) -> str:
        return str(self.hf.config._attn_implementation)

    def logits(self, input_ids: Tensor) -> Tensor:
        """(1, token) -> (1, token, vocab)."""
        logits: Tensor = self.hf(input_ids=input_ids, use_cache=False).logits
        return logits

    def ids(self, input_ids: Any) -> Tensor:
        """One prompt's ids as (1, token) on the model's device."""
        return torch.tensor([list(input_ids)], device=self.device)

    def require_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise ModelError(
                f"edit_layer out of range: {layer} not in [0, {self.n_layers - 1}] (this model has "
                f"{self.n_layers} layers; choose one with --fv-edit-layer)"
            )

    @property
    def weights_sha(self) -> str:
        """Digest of every parameter by name, dtype, shape and value: a model is known by it wherever it lies."""
        if "weights" not in self.known:
            self.known["weights"] = weights_digest(self.hf)
        return self.known["weights"]

    @property
    def tokenizer_sha(self) -> str:
        if "tokenizer" not in self.known:
            self.known["tokenizer"] = tokenizer_digest(self.tokenizer)
        return self.known["tokenizer"]


def _resolve(root: nn.Module, path: str, label: str, spec: ModelSpec) -> nn.Module:
    """Walk a dotted path; the error names the missing part, where it was looked for, and what stands there."""
    module, walked = root, ""
    for part in path.split("."):
        children = dict(module.named_children())
        if part not in children:
            raise ModelError(
                f"Spec '{spec.name}' failed to resolve {label} '{path}': missing '{part}' at '{walked or 'the model'}'; "
                f"found there: {', '.join(children) or 'nothing'}"
            )
        module, walked = children[part], f"{walked}.{part}".lstrip(".")
    return module


def weights_digest(hf: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, parameter in sorted(hf.named_parameters()):
        value = parameter.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def tokenizer_digest(tokenizer: Any) -> str:
    """Digest of what decides the ids: the fast tokenizer's pipeline, or vocabulary and probes of a slow one."""
    probe = [tokenizer(text).input_ids for text in ("Q: hot\nA: cold\n\nQ: unhappy\nA:", " a", "caf\u00e9 12!\n")]
    facts: dict[str, Any] = {"bos": tokenizer.bos_token_id, "eos": tokenizer.eos_token_id, "probe": probe}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        facts["vocab"] = tokenizer.get_vocab()
    else:
        pipeline = json.loads(backend.to_str())
        # Truncation and padding are settings of the last call, not of the tokenizer.
        facts |= {key: value for key, value in pipeline.items() if key not in {"truncation", "padding", "version"}}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def deterministic(seed: int) -> None:
    """Seeds fixed; TF32 and kernel search off, so that fp32 means fp32 and two runs agree."""
    random.seed(seed)
    np.random.seed(seed)  # the reference draws from the legacy generator
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def resolve(name: str) -> Path | str:
    """A shipped model's directory, an existing directory, or the name itself (a hub id, cached)."""
    if embedded.is_embedded(name):
        return embedded.path_of(name)
    path = Path(name).expanduser()
    return path.resolve() if path.is_dir() else name


def load_tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(resolve(name)), local_files_only=True)
    except Exception as error:
        # Whatever the library raises (OSError, ValueError, its own types), the person needs the name and a way out.
        raise ModelError(_not_loaded("tokenizer", name, error)) from error


def load(name: str, device: str = "cpu", dtype: str = "fp32", attn: str | None = None, seed: int = 0) -> LanguageModel:
    """Load a model in eval mode from disk, never from the network; `dtype` is always passed on.

    `name` is a shipped model (`tiny-llama`, `tiny-gpt2`), a directory or a hub id in the local cache.
    """
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # local files load in a moment; a bar would tear the test output
    if dtype not in DTYPES:
        raise ModelError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    deterministic(seed)
    tokenizer = load_tokenizer(name)
    where = resolve(name)
    options = {"attn_implementation": attn} if attn else {}
    try:
        hf, report = AutoModelForCausalLM.from_pretrained(
            str(where), dtype=DTYPES[dtype], local_files_only=True, output_loading_info=True, **options
        )
        hf.to(device)
    except Exception as error:
        raise ModelError(_not_loaded("model", name, error)) from error
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{name!r} lacks {len(missing)} weight(s) of a {hf.config.model_type} model, which would be drawn at random: "
            f"{', '.join(missing[:3])}. Use a complete checkpoint of a causal language model."
        )
    if isinstance(where, Path):
        return LanguageModel.wrap(hf, tokenizer, where.name, where)
    return LanguageModel.wrap(hf, tokenizer, name)


def _not_loaded(what: str, name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())[:300]
    shipped = ", ".join(embedded.EMBEDDED)
    return (
        f"cannot load the {what} of {name!r}: {reason}. Expected a shipped model ({shipped}), a directory written by "
        "save_pretrained, or a hub id that is in the local cache (nothing is downloaded)."
    )
