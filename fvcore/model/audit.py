"""What a model and its tokenizer really are, audited: BOS and padding, parts and hooks, one JSON file each.

The BOS audit needs the tokenizer alone. The resolver's smoke test loads the model, walks the spec's paths, and lets
"Hello" run past a hook on the output projection. Whatever fails is written down with the part that is missing.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fvcore.formats import read_json, sha256, write_json
from fvcore.model.anatomy import BLOCKS, require_parts
from fvcore.model.hooks import read_heads
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError, ModelSpec, PartMissing
from fvcore.model.tokenizer import BosFacts

TOKENIZER_ONLY, LOADED = "L1_tokenizer_only", "L2_model_loaded"
PROBE = "Hello"


@dataclass
class ResolverSmoke:
    """`resolver_smoke_<key>.json`: the spec's paths walked in the loaded model; None is what was not looked at."""

    spec_key: str
    hf_model_id: str
    smoke_level: str
    negative: bool
    blocks_path: str
    checked_layer_indices: list[int]
    derived_out_proj_paths: list[str]
    blocks_ok: bool | None = None
    out_proj_ok: bool | None = None
    hook_ok: bool | None = None
    out_proj_class: str | None = None
    out_proj_weight_shape: list[int] | None = None
    out_proj_bias_shape: list[int] | None = None
    last_dim: int | None = None
    failed_segment: str | None = None
    exception_type: str | None = None
    message: str | None = None
    deferred_to_m5b: bool = False

    @property
    def ok(self) -> bool:
        """All that was looked at is right; of a negative test, that the failure was told as it should be."""
        if self.negative:
            return self.exception_type == PartMissing.__name__ and self.failed_segment == ABSENT
        return self.exception_type is None and False not in (self.blocks_ok, self.out_proj_ok, self.hook_ok)

    def failed(self, error: Exception) -> None:
        self.exception_type, self.message = type(error).__name__, str(error)
        if isinstance(error, PartMissing):
            self.failed_segment, self.blocks_ok = error.part, error.label != BLOCKS
            self.out_proj_ok = False if self.blocks_ok else None


ABSENT = "no_such_part"
"""The part that the negative test looks for."""


def bos_policy(bos: int | None, eos: int | None, first_is_bos: bool) -> str:
    """none, tokenizer or manual. What the tokenizer really does is asked first: some prepend a BOS that is also the EOS."""
    if bos is None:
        return "none"
    if first_is_bos:
        return "tokenizer"
    return "none" if bos == eos else "manual"


def pad_policy(pad: int | None, eos: int | None) -> str:
    """Which token pads: the tokenizer's own, else the end of text, else none."""
    return "pad_token" if pad is not None else "eos_token" if eos is not None else "none"


def bos_audit(tokenizer: Any, spec: ModelSpec, name: str) -> dict[str, Any]:
    """`bos_audit_<key>.json`: what the tokenizer does, and what follows from it."""
    facts = BosFacts.of(tokenizer)
    bos, eos, pad = (getattr(tokenizer, f"{token}_token_id", None) for token in ("bos", "eos", "pad"))
    policy = bos_policy(bos, eos, facts.adds_bos)
    return {
        "spec_key": spec.name,
        "hf_model_id": name,
        "tokenizer_class": type(tokenizer).__name__,
        "tokenizer_name_or_path": str(getattr(tokenizer, "name_or_path", "")),
        "bos_token_id": bos,
        "eos_token_id": eos,
        "pad_token_id": pad,
        "first_token_is_bos_add_special_tokens_true": facts.adds_bos,
        "first_token_is_bos_add_special_tokens_false": facts.bos_without_special_tokens,
        "decision_bos_policy": policy,
        "decision_pad_policy": pad_policy(pad, eos),
        # A BOS that nobody inserts is not prepended, whatever the model was trained with.
        "decision_prepend_bos": policy == "tokenizer",
        "requires_manual_bos_injection": policy == "manual",
        "first_ids": list(facts.first_ids),
        "spec_prepend_bos": spec.prepend_bos,
        "agrees_with_spec": spec.prepend_bos in (None, facts.adds_bos),
    }


def not_loaded(spec: ModelSpec, name: str, error: ModelError | None = None) -> ResolverSmoke:
    """The smoke test of a model that is left on disk: paths as the spec derives them, nothing looked at.

    error: why, of one that the spec does not fit, or that cannot be loaded as asked
    """
    smoke = ResolverSmoke(
        spec_key=spec.name,
        hf_model_id=name,
        smoke_level=LOADED if error else TOKENIZER_ONLY,
        negative=False,
        blocks_path=spec.blocks_path,
        checked_layer_indices=[],
        derived_out_proj_paths=[spec.out_proj_path(0)],
        deferred_to_m5b=not error,
    )
    if error:
        smoke.failed(error)
    return smoke


def resolver_smoke(lm: LanguageModel, name: str, negative: bool = False) -> ResolverSmoke:
    """Walk the paths, run "Hello", look at what enters the projection. `negative` looks for a part that is not there."""
    spec = lm.spec.changed(out_proj_path_in_attn=ABSENT) if negative else lm.spec
    layers = sorted({lm.head_layers[at] for at in (0, len(lm.head_layers) // 2, -1)})
    paths = [spec.out_proj_path(layer) for layer in layers]
    smoke = ResolverSmoke(spec.name, name, LOADED, negative, spec.blocks_path, layers, paths)
    try:
        require_parts(lm.hf, spec)
        smoke.blocks_ok = smoke.out_proj_ok = True
        o_proj: Any = lm.o_proj(layers[0])
        bias = getattr(o_proj, "bias", None)
        smoke.out_proj_class, smoke.out_proj_weight_shape = type(o_proj).__name__, list(o_proj.weight.shape)
        smoke.out_proj_bias_shape = None if bias is None else list(bias.shape)
        smoke.hook_ok = False
        smoke.last_dim = last_dim(lm)
        smoke.hook_ok = True
    except (ModelError, RuntimeError) as error:  # a hook that never fired is one
        smoke.failed(error)
    return smoke


@torch.inference_mode()
def last_dim(lm: LanguageModel) -> int:
    """Width of what enters every projection when the model reads "Hello". Raises ModelError where its logits are no numbers."""
    ids = [1] if lm.tokenizer is None else lm.tokenizer(PROBE).input_ids
    with read_heads(lm) as heads:
        logits = lm.logits(lm.ids(ids))
    if not torch.isfinite(logits).all():
        raise ModelError(
            f"logits of {PROBE!r} are not finite with dtype {lm.dtype}, quant {lm.quant} on {lm.device}; use cpu, fp32, "
            "quant none for parity"
        )
    return int(max(layer.shape[-2] * layer.shape[-1] for layer in heads.values()))


SUMMARY = "summary.json"
"""Has a row for each model that was audited into the folder."""


def file_name(what: str, key: str) -> str:
    return f"{what}_{re.sub(r'[^a-z0-9_.-]+', '_', key.lower()).strip('_')}.json"


def _names(key: str, model: str) -> Iterator[str]:
    """What the files of a model may be named by: the plan's key alone, as long as no other model's are."""
    yield key
    short = Path(model).name
    yield f"{key}_{short}"
    yield f"{key}_{short}_{sha256(model.encode()):.8}"


def write(
    folder: Path, bos: dict[str, Any], smoke: ResolverSmoke, diagnostics: dict[str, Any] | None = None
) -> list[Path]:
    """The files of an audit; diagnostics of a loaded model stand beside them."""
    key, summary = bos["spec_key"], folder / SUMMARY
    known: list[dict[str, Any]] = read_json(summary) if summary.is_file() else []
    others = [row for row in known if (row["spec_key"], row["hf_model_id"]) != (key, bos["hf_model_id"])]
    taken = {name for row in others for name in row["files"]}
    named = next(name for name in _names(key, bos["hf_model_id"]) if file_name("bos_audit", name) not in taken)
    names = [file_name(what, named) for what in ("bos_audit", "resolver_smoke")]
    row = {
        "spec_key": key,
        "hf_model_id": bos["hf_model_id"],
        "smoke_level": smoke.smoke_level,
        "bos_policy": bos["decision_bos_policy"],
        "pad_policy": bos["decision_pad_policy"],
        "prepend_bos": bos["decision_prepend_bos"],
        "resolver_ok": smoke.ok,
        "warnings": [] if diagnostics is None else diagnostics["warnings"],
        "files": names,
    }
    values: dict[str, Any] = {names[0]: bos, names[1]: vars(smoke), SUMMARY: [*others, row]}
    if diagnostics is not None:
        values[file_name("diagnostics", named)] = diagnostics
    for name, value in values.items():
        write_json(folder / name, value)
    return [folder / name for name in values]
