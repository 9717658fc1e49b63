"""Which engine gives the numbers: `fast` where it holds for the model at hand, `exact` otherwise.

`screened` is `fast`, and where only the top heads are wanted it leaves out what an estimate rules out (`screening.py`).

`fast` runs a model's own code on rows that are no real prompt. Whether a model's code allows that is not assumed: once a
model, a few heads and an injection are computed both ways on two random prompts of different lengths, together (padded)
and alone (without a mask: other kernels).

The functions here take an engine by its name and give a station's numbers by the one that is chosen.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from fvcore import activations, effects
from fvcore.exits import in_one_line
from fvcore.fast import sweep
from fvcore.fast.chunks import Advance, chunk_size, even, in_chunks, silent
from fvcore.fast.shared_prompt import SharedPrompt
from fvcore.model.anatomy import stated
from fvcore.model.hooks import add_to_residual, as_it_stands
from fvcore.model.memory import is_out_of_memory
from fvcore.model.model import LanguageModel
from fvcore.model.spec import ModelError
from fvcore.slots import SlotMap

Trial = TypeVar("Trial", bound=tuple[Any, ...])

ENGINES = ("exact", "fast", "screened")

LENGTHS = (48, 31)
"""Tokens of the two prompts; longer where a window is."""

LONGEST_WINDOW = 4096
"""From here on a prompt of shots never sees a window's edge."""

ROUNDING = {torch.float32: 1e-5}
HALF = 5e-2
"""How far logits may be apart, relative to the largest: fp32 was seen at 1e-6, half precision at 1e-2."""


def chosen(lm: LanguageModel, asked: str) -> str:
    """The engine that gives the numbers where `asked` is asked for; `why_not_fast` says why it is another one."""
    if asked not in ENGINES:
        raise ModelError(f"unknown engine {asked!r}; expected one of {', '.join(ENGINES)}")
    return asked if asked == "exact" or not why_not_fast(lm) else "exact"


@torch.inference_mode()
def mean_head_activations(
    lm: LanguageModel,
    prompts: Sequence[tuple[Sequence[int], SlotMap]],
    engine: str = "fast",
    max_memory: int | None = None,
) -> Tensor:
    """`activations.mean_head_activations` by an engine: (layer, head, slot, d_head), float32.

    max_memory: bytes beside the weights, here and below; half of what is free by default
    """
    if chosen(lm, engine) == "exact" or not prompts:
        return activations.mean_head_activations(lm, prompts)
    return _by_trial(lm, prompts, max_memory, lambda some, _: sweep.head_activations(lm, some)).mean(dim=0)


@torch.inference_mode()
def causal_indirect_effects(
    lm: LanguageModel,
    cases: Sequence[sweep.Case],
    mean_activations: Tensor,
    all_token_classes: bool = False,
    engine: str = "fast",
    max_memory: int | None = None,
) -> Tensor:
    """`effects.causal_indirect_effect` of every prompt by an engine: (trial, layer, head[, class]), float32 on the CPU.

    mean_activations: (layer, head, slot, d_head), here and below
    """
    if chosen(lm, engine) == "exact":
        each = [effects.causal_indirect_effect(lm, *case, mean_activations, all_token_classes) for case in cases]
        return torch.stack(each)
    classes = list(effects.TOKEN_CLASSES) if all_token_classes else ["query_predictive"]
    share = None if max_memory is None else max_memory // 2
    by_layer = (lm.n_heads, len(classes))

    def run(some: Sequence[sweep.Case], along: bool) -> Tensor:
        read = effects.read_probability
        readings = sweep.target_readings(lm, some, mean_activations, lm.heads, classes, share, read=read, along=along)
        probabilities = readings[:, :, 0]
        found = torch.zeros(len(some), lm.n_layers, *by_layer)
        of_heads = (probabilities[:, 1:] - probabilities[:, :1]).float().cpu()
        found[:, list(lm.head_layers)] = of_heads.view(len(some), -1, *by_layer)
        return found

    found = _by_trial(lm, cases, share, run, 0 if all_token_classes else len(lm.heads))
    return found if all_token_classes else found.squeeze(-1)


@torch.inference_mode()
def target_readings(
    lm: LanguageModel,
    cases: Sequence[sweep.Case],
    mean_activations: Tensor,
    heads: Sequence[sweep.Head],
    engine: str = "fast",
    max_memory: int | None = None,
    advance: Advance = silent,
) -> Tensor:
    """`effects.target_readings` of every prompt by an engine: (trial, 1 + len(heads), 3), float32.

    heads: in order of layer     advance: is told after each pass
    """
    if chosen(lm, engine) == "exact":
        each = [effects.target_readings(lm, *case, mean_activations, heads, advance) for case in cases]
        return torch.stack(each)
    share = None if max_memory is None else max_memory // 2

    def run(some: Sequence[sweep.Case], along: bool) -> Tensor:
        found = sweep.target_readings(lm, some, mean_activations, heads, max_memory=share, advance=advance, along=along)
        return found[..., 0].float().cpu()

    return _by_trial(lm, cases, share, run, len(heads))


def _by_trial(
    lm: LanguageModel,
    trials: Sequence[Trial],
    max_memory: int | None,
    run: Callable[[Sequence[Trial], bool], Tensor],
    n_variants: int = 0,
) -> Tensor:
    """What `run` gives of as many trials at a time as fit the memory.

    n_variants: of each trial; `run` is told whether they run along with their prompts
    """
    n_tokens = [len(ids) for ids, *_ in trials]
    along = sweep.trials_along(lm, max(n_tokens), n_variants, max_memory) if n_variants else 0
    at_most = max(1, sweep.ROWS // max(n_tokens))
    size = along or chunk_size(sweep.trial_bytes(lm, max(n_tokens)), lm.device, at_most, max_memory)
    # Prompts of a length stand together: the shorter ones of a batch are padded.
    by_length = sorted(range(len(trials)), key=n_tokens.__getitem__)
    ordered, size = [trials[at] for at in by_length], even(len(trials), size)
    try:
        found = list(in_chunks(ordered, size, lambda some: run(some, bool(along))))
    except RuntimeError as error:
        if not along or not is_out_of_memory(error):
            raise
        found = []
    # Not even one trial had room for all its variants at once: prompts first, and variants as many at a time as fit.
    found = found or list(in_chunks(ordered, 1, lambda some: run(some, False)))
    return torch.cat(found)[torch.tensor(by_length).argsort()]


def why_not_fast(lm: LanguageModel) -> str:
    """Why engine `fast` does not hold for this model, or nothing. Asked of the model once, and anew where it is not as it was."""

    def find() -> str:
        try:
            return next((str(row) for row in apart(lm) if not row.within), "")
        except Exception as error:  # whatever a model's code says to rows it did not expect
            return f"{type(error).__name__}: {in_one_line(error):.300}"

    return lm.once(f"fast engine, {lm.attn_implementation}, {as_it_stands(lm.hf)}", find)


class Apart(NamedTuple):
    """How far the logits of both engines are apart at a row of the probe, in the model's own unit."""

    what: str
    off: float
    allowed: float

    @property
    def within(self) -> bool:
        return self.off <= self.allowed

    def __str__(self) -> str:
        return f"{self.what}: logits differ by {self.off:.3g} ({self.allowed:.3g} allowed)"


@torch.inference_mode()
def apart(lm: LanguageModel) -> Iterator[Apart]:
    """Both engines beside one another, row by row of the probe. Raises what the model's code raises."""
    draw = torch.Generator().manual_seed(0)
    window = _window(lm)
    lengths = [min(n + 2 * window, (lm.max_tokens or n + 2 * window) - at) for at, n in enumerate(LENGTHS)]
    prompts = [torch.randint(lm.vocab_size, (n,), generator=draw).tolist() for n in lengths]
    # Large ones: an effect that is within rounding would show nothing.
    means = 3 * torch.randn(lm.n_layers, lm.n_heads, 1, lm.d_head, generator=draw)
    vector = 3 * torch.randn(lm.d_model, generator=draw).to(lm.device)
    # Two at once from the first layer on: every block sees rows of more than one variant.
    first, *_, last = (layers := lm.head_layers) * 2
    heads = sorted({(first, 0), (first, lm.n_heads - 1), (layers[len(layers) // 2], lm.n_heads // 2), (last, 0)})
    probe = _Probe(lm, heads, means, sorted({0, lm.n_layers - 1}), vector, window)
    exact = [probe.exact(prompt) for prompt in prompts]
    for together in (prompts, prompts[:1]):
        for fast, rows in zip(probe.fast(together), exact, strict=False):
            for (what, wanted), row in zip(rows, fast, strict=True):
                allowed = ROUNDING.get(wanted.dtype, HALF) * float(wanted.abs().max())
                yield Apart(what, float((row - wanted).abs().max()), allowed)


def _window(lm: LanguageModel) -> int:
    """The widest window of tokens that a config speaks of, under whatever name, and that prompts of shots are longer than."""
    names = {name for name in vars(lm.config) if "window" in name and "layers" not in name} | {"sliding_window"}
    widths = [width for name in names if type(width := stated(lm.config, name)) is int and width < LONGEST_WINDOW]
    return max(widths, default=0)


@dataclass(frozen=True)
class _Probe:
    """What is computed both ways: a prompt as it is, with heads replaced, with a vector behind layers.

    `fast` has variants start at every layer, for one may see keys of another's; and so many that those compared stand as far
    from the prompt as a window is wide, for some code counts rows in place of positions.
    """

    lm: LanguageModel
    heads: Sequence[sweep.Head]
    means: Tensor
    layers: Sequence[int]
    vector: Tensor
    window: int

    def fast(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """(prompt, row, vocab)"""
        prompt = SharedPrompt.run(self.lm, prompts)
        last = torch.ones(len(prompts), 1, dtype=torch.bool, device=self.lm.device)
        replacement = sweep.Replacement(self.means.to(self.lm.device), torch.zeros_like(last, dtype=torch.long), last)
        every = [(layer, 0) for layer in self.lm.head_layers]
        started, layers = (
            sorted([*{*self.heads, *every}, *every[:1] * min(self.window, sweep.alike(self.lm))]),
            self.lm.n_layers,
        )
        heads = [bisect_right(started, head) - 1 - len(started) for head in self.heads]
        added = [layer - layers for layer in self.layers]
        rows = [prompt.entered[-1][:, -1:]]
        for suffix in (prompt.suffix(1), SharedPrompt.along(self.lm, prompts, max(len(started), layers))):
            alone = [0] * bool(suffix.n_along)
            rows.append(sweep.rows_with_heads_replaced(suffix, started, replacement)[:, alone + heads])
            rows.append(sweep.rows_with_vectors_added(suffix, range(layers), [self.vector])[0][:, alone + added])
        return prompt.logits(torch.cat(rows, dim=1))

    def exact(self, prompt: Sequence[int]) -> list[tuple[str, Tensor]]:
        """The same rows of one prompt, each from a pass of its own, and what they are."""
        ids = self.lm.ids(prompt)
        alone = "the prompt itself", self.lm.logits(ids)[0, -1]
        replaced, added = [], []
        for layer, head in self.heads:
            with effects.head_replaced(self.lm, layer, head, {-1: self.means[layer, head, 0]}):
                replaced.append((f"layer {layer}, head {head} replaced", self.lm.logits(ids)[0, -1]))
        for layer in self.layers:
            with add_to_residual(self.lm, layer, self.vector):
                added.append((f"a vector added behind layer {layer}", self.lm.logits(ids)[0, -1]))
        # Behind a prompt that ran first, and along with it.
        return [alone, *replaced, *added, alone, *replaced, alone, *added]
