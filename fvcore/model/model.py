"""LanguageModel: a loaded decoder and its tokenizer, with its parts under the names the papers use."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fvcore import embedded
from fvcore.exits import in_one_line
from fvcore.model import digests, on_disk
from fvcore.model.anatomy import head_widths, max_tokens, require_parts, spec_in, stated, text_config, types_of
from fvcore.model.digests import tokenizer_digest as tokenizer_digest
from fvcore.model.digests import weights_digest as weights_digest
from fvcore.model.hooks import require_streams
from fvcore.model.placement import DTYPES as DTYPES
from fvcore.model.placement import Placement, quant_of
from fvcore.model.spec import ModelError as ModelError
from fvcore.model.spec import ModelSpec, spec_found, spec_of
from fvcore.model.tokenizer import BosFacts, bos_left_out
from fvcore.profile import MOST_SEED
from fvcore.provenance import untested


class ModelWarning(UserWarning):
    """Something about a loaded model that its numbers depend on."""


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
    origin: digests.Origin | None = field(default=None, repr=False, compare=False)
    # What takes long to find out (digests read every weight) is kept here.
    known: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def __repr__(self) -> str:
        sizes = f"{self.n_layers} layers, {self.n_heads} heads, d_model {self.d_model}"
        return f"LanguageModel({self.name}: {self.spec.name}, {sizes}, {self.dtype} on {self.device})"

    @classmethod
    def wrap(
        cls,
        hf: Any,
        tokenizer: Any = None,
        name: str = "in memory",
        source: Path | None = None,
        spec: ModelSpec | str | None = None,
    ) -> LanguageModel:
        """Take a Hugging Face causal LM as it is; it is put into eval mode and its gradients are switched off.

        spec: one of your own, or the name or file of one; found by the model's type or structure if not given.

        Raises ModelError where its parts are not where the spec says, or what runs through them is no residual stream.
        """
        found = spec_in(hf) if spec is None else spec_of(spec)
        require_parts(hf, found)
        lm = cls(hf.eval().requires_grad_(False), tokenizer, found, name, source)
        require_streams(lm)
        return lm

    @cached_property
    def blocks(self) -> nn.ModuleList:
        """The decoder's blocks in order, as the spec finds them."""
        blocks = self.hf.get_submodule(self.spec.blocks_path)
        assert isinstance(blocks, nn.ModuleList)
        return blocks

    def o_proj(self, layer: int) -> nn.Module:
        """A layer's output projection: what enters it is the layer's heads, one behind the other."""
        module: nn.Module = self.hf.get_submodule(self.spec.out_proj_path(layer))
        return module

    def attention(self, layer: int) -> nn.Module:
        """A layer's attention: the module that has the output projection."""
        module: nn.Module = self.blocks[layer].get_submodule(self.spec.attn_path_in_block)
        return module

    @property
    def n_layers(self) -> int:
        """How many blocks there are."""
        return len(self.blocks)

    @cached_property
    def config(self) -> Any:
        """The config of the part that reads text, which in a multimodal model is not the whole."""
        return text_config(self.hf.config)

    @property
    def n_heads(self) -> int:
        """Query heads of a layer."""
        return int(self.config.num_attention_heads)

    @property
    def n_kv_heads(self) -> int | None:
        """Heads of keys and values, as the config says it; None where it does not."""
        names = ("num_key_value_heads", "num_kv_heads")
        return next((int(found) for name in names if (found := stated(self.config, name))), None)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @cached_property
    def d_heads(self) -> tuple[int, ...]:
        """Width of one head in each layer; 0 in a layer that has no attention of this kind, and so no heads."""
        return head_widths(self.hf, self.spec)

    @property
    def d_head(self) -> int:
        """Width of the widest head; n_heads * d_head need not be d_model."""
        return max(self.d_heads)

    @cached_property
    def head_layers(self) -> tuple[int, ...]:
        """The layers that have heads: all of them, but for models that mix attention with something else."""
        return tuple(layer for layer, width in enumerate(self.d_heads) if width)

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Every (layer, head) that there is, by layer."""
        return [(layer, head) for layer in self.head_layers for head in range(self.n_heads)]

    @property
    def vocab_size(self) -> int:
        """How many tokens the logits are of."""
        return int(self.config.vocab_size)

    @property
    def quant(self) -> str:
        """What the weights really are: none, 8bit, 4bit, or the name of another method."""
        return quant_of(self.hf.config)

    @property
    def itemsize(self) -> int:
        """Bytes of one number of the weights."""
        return int(next(self.hf.parameters()).element_size())

    @property
    def device(self) -> torch.device:
        """Where the first of the weights lies."""
        device: torch.device = next(self.hf.parameters()).device
        return device

    @property
    def dtype(self) -> str:
        """The dtype the weights really have: fp32, fp16 or bf16."""
        loaded = next(self.hf.parameters()).dtype
        return next((name for name, dtype in DTYPES.items() if dtype == loaded), str(loaded))

    @property
    def attn_implementation(self) -> str:
        """The attention that runs: sdpa, eager or another of the library's."""
        return str(self.config._attn_implementation)

    def logits(self, input_ids: Tensor) -> Tensor:
        """(1, token) -> (1, token, vocab)."""
        logits: Tensor = self.hf(input_ids=input_ids, use_cache=False).logits
        return logits

    def ids(self, input_ids: Any) -> Tensor:
        """One prompt's ids as (1, token) on the model's device; raises ModelError where they are more than it reads."""
        ids = list(input_ids)
        self.require_room(len(ids))
        return torch.tensor([ids], device=self.device)

    @cached_property
    def max_tokens(self) -> int | None:
        """How many tokens it reads at most, where it says so; the tokenizer's own limit is another one."""
        return max_tokens(self.hf)

    def require_room(self, n_tokens: int) -> None:
        """Raise ModelError for more tokens than the model reads, where it says how many it reads."""
        if self.max_tokens is not None and n_tokens > self.max_tokens:
            raise ModelError(
                f"{n_tokens} tokens to read, prompt and what follows it, and {self.name} reads {self.max_tokens} (its config's "
                "limit, or the size of its table of positions); use fewer shots, or a model of longer texts"
            )

    def require_layer(self, layer: int) -> None:
        """Raise ModelError for a layer that there is not, a negative one too."""
        if not 0 <= layer < self.n_layers:
            raise ModelError(on_disk.out_of_range("this model", layer, self.n_layers))

    @property
    def weights_sha(self) -> str:
        """Digest of every parameter by name, dtype, shape and value: a model is known by it wherever it lies."""
        return self.once("weights", lambda: digests.weights_sha(self.hf, self.origin))

    @property
    def tokenizer_sha(self) -> str:
        """Digest of what decides the ids that a text has."""
        return self.once("tokenizer", lambda: tokenizer_digest(self.tokenizer))

    def once(self, name: str, find: Callable[[], str]) -> str:
        """What `find` finds, asked of a model once."""
        if name not in self.known:
            self.known[name] = find()
        return self.known[name]


def require_bos(lm: LanguageModel) -> None:
    """A spec that says whether BOS is prepended must say what the tokenizer does."""
    if lm.spec.prepend_bos is None or lm.tokenizer is None:
        return
    facts = BosFacts.of(lm.tokenizer)
    if facts.adds_bos != lm.spec.prepend_bos:
        raise ModelError(
            f"Spec '{lm.spec.name}' says prepend_bos = {str(lm.spec.prepend_bos).lower()}, and the tokenizer adds "
            f"{'a' if facts.adds_bos else 'no'} BOS (add_special_tokens=True, first ids of 'Q: a': {list(facts.first_ids)}, bos "
            f"id {facts.bos_token_id}); what it does counts: correct the spec or take the model's own tokenizer"
        )


def deterministic(seed: int) -> None:
    """Seeds fixed; TF32 and kernel search off, so that fp32 means fp32 and two runs agree."""
    if not 0 <= seed <= MOST_SEED:
        raise ModelError(f"seed {seed}: expected 0 to {MOST_SEED}")
    random.seed(seed)
    np.random.seed(seed)  # the reference draws from the legacy generator
    torch.manual_seed(seed)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def resolve(name: str) -> Path | str:
    """A shipped model's directory, an existing directory, or the name itself (a hub id, cached)."""
    if name in embedded.EMBEDDED:
        return embedded.path_of(name)
    if name == embedded.WIRED:
        from fvcore.embedded import wired

        return wired.directory()
    path = Path(name).expanduser()
    return path.resolve() if path.is_dir() else name


def load_tokenizer(name: str) -> Any:
    """Warns where it lacks the BOS that its release has."""
    tokenizer = _tokenizer(name)
    if doubt := bos_left_out(tokenizer):
        warnings.warn(f"{name}: {doubt}", ModelWarning, stacklevel=2)
    return tokenizer


def _tokenizer(name: str) -> Any:
    from transformers import AutoTokenizer

    on_disk.folder_of(name)
    with _loading("tokenizer", name):
        _require_bounded(name)
        return AutoTokenizer.from_pretrained(str(resolve(name)), local_files_only=True, trust_remote_code=False)


def load(
    name: str,
    device: str | None = None,
    dtype: str | None = None,
    attn: str | None = None,
    seed: int = 0,
    *,
    spec: ModelSpec | str | None = None,
    quant: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
) -> LanguageModel:
    """Load a model in eval mode from disk, never from the network; `dtype` is always passed on.

    name: a shipped model (`tiny-llama`, `tiny-gpt2`), a directory or a hub id in the local cache.
    device: cpu, cuda, cuda:k or auto; device_map in its place (needs accelerate).
    spec: one of your own, a registered name, or a YAML file; found by the model's type or structure if not given.
    quant: none, 8bit or 4bit (bitsandbytes, on CUDA).

    What is not given is the spec's default, else fp32 on the CPU and no quantisation.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # local files load in a moment; a bar would tear the test output
    given = None if spec is None else spec_of(spec)
    placement = Placement.of(given, dtype, device, device_map, quant)
    deterministic(seed)
    tokenizer = _tokenizer(name)
    where = resolve(name)
    config = config_on_disk(name)
    attn = _attention(config, attn)
    options = placement.options() | ({"attn_implementation": attn} if attn else {})
    with _loading("model", name, f" Asked for: {placement}{placement.advice}."):
        files = digests.files_of(str(where))
        hf, report = _auto_class(config).from_pretrained(
            str(where), local_files_only=True, trust_remote_code=False, output_loading_info=True, **options
        )
        if "device_map" not in options:
            hf.to(placement.device)
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{name!r} lacks {len(missing)} weight(s) of a {hf.config.model_type} model, which would be drawn at random: "
            f"{', '.join(missing[:3])}. Use a complete checkpoint of a causal language model."
        )
    known_as, source = (where.name, where) if isinstance(where, Path) else (name, None)
    lm = LanguageModel.wrap(hf, tokenizer, known_as, source, given)
    lm = replace(lm, origin=digests.origin_of(hf, files, placement.options()))
    require_bos(lm)
    for sentence in doubts(lm):
        warnings.warn(f"{lm.name}: {sentence}", ModelWarning, stacklevel=2)
    return lm


def spec_on_disk(name: str) -> ModelSpec:
    """The spec of a model that is left on disk, by its config's type; raises ModelError where only structure could tell."""
    return spec_found(types_of(config_on_disk(name)), ())


def n_layers_on_disk(name: str) -> int:
    return int(text_config(config_on_disk(name)).num_hidden_layers)


def dtype_on_disk(name: str) -> str:
    """The dtype that a checkpoint says it is of: fp32, fp16 or bf16; fp32 where it does not say."""
    said = getattr(config_on_disk(name), "dtype", None)
    return next((short for short, dtype in DTYPES.items() if dtype == said or str(dtype) == f"torch.{said}"), "fp32")


def config_on_disk(name: str) -> Any:
    """A model's config; raises ModelError where there is none."""
    from transformers import AutoConfig

    on_disk.folder_of(name)
    with _loading("config", name):
        _require_bounded(name)
        return AutoConfig.from_pretrained(str(resolve(name)), local_files_only=True, trust_remote_code=False)


MOST_LAYERS = 2**12


def _require_bounded(name: str) -> None:
    """Raise ValueError for more layers than any model has: a config is already built as large as it says it is."""
    from transformers import PretrainedConfig

    try:
        said, _ = PretrainedConfig.get_config_dict(str(resolve(name)), local_files_only=True)
    except OSError:  # a tokenizer by itself has none
        return
    for part in (said, *(value for value in said.values() if isinstance(value, dict))):
        for key in on_disk.LAYERS:
            if isinstance(part.get(key), int) and part[key] > MOST_LAYERS:
                raise ValueError(f"its config says {key} {part[key]:.10g}; at most {MOST_LAYERS} are taken")


def without_weights(config: Any, dtype: torch.dtype, n_layers: int | None = None) -> Any:
    """The model of a config on a device without memory, where only shapes are followed; of its first layers, if so asked."""
    config = copy.deepcopy(config)
    if n_layers is not None:
        text_config(config).num_hidden_layers = n_layers
    with torch.device("meta"):
        return _auto_class(config).from_config(config, dtype=dtype)


def _attention(config: Any, asked: str | None) -> str | None:
    """Soft-capped attention is beyond sdpa; some versions of the library take it all the same, and leave the cap out."""
    if not _soft_capped(config):
        return asked
    if asked == "sdpa":
        raise ModelError(
            f"attention sdpa leaves out the soft cap that this {config.model_type} model has "
            f"(attn_logit_softcapping {text_config(config).attn_logit_softcapping:g}); use eager"
        )
    return asked or "eager"


def _soft_capped(config: Any) -> bool:
    return bool(getattr(text_config(config), "attn_logit_softcapping", None))


def _auto_class(config: Any) -> Any:
    """The library's class that loads it: a multimodal model is none of the causal ones, and has a decoder like theirs."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    causal, images, kind = AutoModelForCausalLM, AutoModelForImageTextToText, type(config)
    return images if kind in images._model_mapping and kind not in causal._model_mapping else causal


def doubts(lm: LanguageModel) -> list[str]:
    """What makes a loaded model's numbers doubtful: quantised weights, a soft cap or a BOS left out."""
    said = []
    if lm.quant != "none":
        said.append(
            f"weights are quantised ({lm.quant}): numbers are comparable with no other quantisation, nor with none"
        )
    if lm.attn_implementation == "sdpa" and _soft_capped(lm.config):
        said.append("attention sdpa leaves out the soft cap that its config asks for: use eager")
    left_out = bos_left_out(lm.tokenizer) if lm.tokenizer is not None else ""
    return [*said, left_out] if left_out else said


def untested_in(lm: LanguageModel) -> dict[str, tuple[str, str]]:
    """Of its family and of the library that runs it, what the project has not tested: name -> (tested, here)."""
    import transformers

    return untested(lm.config.model_type, transformers.__version__)


@contextmanager
def _loading(what: str, name: str, more: str = "") -> Iterator[None]:
    """Whatever the library raises (OSError, ValueError, its own types), the person needs the name and a way out."""
    try:
        yield
    except Exception as error:
        shipped = ", ".join([*embedded.EMBEDDED, embedded.WIRED])
        raise ModelError(
            f"cannot load the {what} of {name!r}: {in_one_line(error)[:300].rstrip('.')}. Expected a shipped model ({shipped}), a "
            f"directory written by save_pretrained, or a hub id that is in the local cache (nothing is downloaded).{more}"
        ) from error
