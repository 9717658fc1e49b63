"""What the set of differences gives away: patterns that known mistakes leave, each read off the numbers alone.

A signature never changes a verdict; the first that fits stands in the headline.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fvcore.artifacts import Artifact
    from fvcore.compare import Tolerance
    from fvcore.gates import Verdict
    from pytest_fvparity.parity.checks import ParityRun

CLOSE = 1e-3
"""How far, relative to what differs, the rest may be behind a pattern that is said to explain it."""


@dataclass(frozen=True)
class Numbers:
    """A tensor leaf that differs: both sides in float64, what was allowed, and the names of its axes."""

    want: Tensor
    have: Tensor
    allowed: Tensor
    axes: Sequence[str]
    words: frozenset[int] = frozenset()  # slots of words of several tokens, where an axis is one of slots

    @cached_property
    def wrong(self) -> Tensor:
        return ~((self.have - self.want).abs() <= self.allowed)

    def explains(self, have: Tensor) -> bool:
        """Whether these numbers in place of the expected ones would leave next to nothing of the difference."""
        rest, off = (self.have - have).abs(), float((self.have - self.want).abs().max())
        return float(rest.max()) <= CLOSE * off or (
            float(rest.max()) <= off / 10 and bool((rest <= self.allowed).all())
        )

    def under(self, axis: int, index: int) -> Numbers:
        """Those under one index of an axis."""
        want, have, allowed = (side.select(axis, index) for side in (self.want, self.have, self.allowed))
        axes = [name for at, name in enumerate(self.axes) if at != axis]
        return Numbers(want, have, allowed, axes, self.words)

    def indices(self, axis: int) -> list[int]:
        """Along an axis, the indices under which something is wrong."""
        others = [other for other in range(self.wrong.ndim) if other != axis]
        wrong = self.wrong.any(dim=others) if others else self.wrong
        return [int(index) for index in wrong.nonzero().flatten()]


def _not_finite(seen: Numbers) -> str | None:
    n_bad = int((~seen.have.isfinite()).sum())
    return f"{n_bad} of {seen.have.numel()} values are not finite" if n_bad else None


def _all_zero(seen: Numbers) -> str | None:
    return "every value is 0" if not seen.have.any() else None


def _factor(seen: Numbers) -> str | None:
    """Every value is the same multiple of what is expected."""
    factor = float((seen.want * seen.have).sum() / (seen.want * seen.want).sum().clamp(min=1e-300))
    known = {-1.0: "the sign is reversed", 1 / len(seen.want): f"its first axis has {len(seen.want)} entries"}
    also = next((f" ({why})" for value, why in known.items() if abs(factor - value) < 1e-4), "")
    same = seen.want.numel() > 1 and seen.want.any() and seen.explains(factor * seen.want)
    return f"every value is {factor:.6g} times what is expected{also}" if same else None


def _offset(seen: Numbers) -> str | None:
    """The same is added everywhere, or the same row."""
    off = seen.have - seen.want
    if off.numel() > 1 and seen.explains(seen.want + off.mean()):
        return f"every value is off by the same {float(off.mean()):.3g}"
    rows = off.flatten(0, -2) if off.ndim > 1 else off[:0]
    if len(rows) > 1 and seen.explains(seen.want + rows.mean(dim=0)):
        return "every row is off by the same vector, as when a bias is left out or added once more"
    return None


def _differences(seen: Numbers) -> str | None:
    """Each value less the one before it, along the heads in their order."""
    if seen.want.ndim < 2:
        return None
    rows = seen.want.flatten(-2)
    less = rows.diff(dim=-1, prepend=0 * rows[..., :1]).view_as(seen.want)
    return "every value is the expected one less that of the head before it" if seen.explains(less) else None


def _rounded(seen: Numbers) -> str | None:
    """Every value is a round one, or one that half precision holds, and what is expected is none."""
    import torch

    def is_round(x: Tensor, decimals: int) -> bool:
        return bool(((x.round(decimals=decimals) - x).abs() <= 2.0**-23 * x.abs()).all())

    for decimals in range(1, 7):
        if is_round(seen.have, decimals) and not is_round(seen.want, decimals):
            return f"every value is rounded to {decimals} decimals"
    kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
    held = {
        name: [side.to(kind).double().equal(side) for side in (seen.want, seen.have)] for name, kind in kinds.items()
    }
    names = (name for name, sides in held.items() if sides == [False, True])
    return next((f"every value is one that {name} holds: was it kept in half precision?" for name in names), None)


def _dropped(seen: Numbers) -> str | None:
    """What is wrong is 0, and the rest is right."""
    at = seen.wrong
    n_zero, gone = int(at.sum()), bool((seen.have[at] == 0).all())
    told = f"{n_zero} of {at.numel()} values are 0 that should not be, and all others agree"
    return told if n_zero and gone else None


def _another_order(seen: Numbers) -> str | None:
    """The slices along an axis are the expected ones in another order; two axes may have changed places."""
    for axis, name in enumerate(seen.axes[: seen.want.ndim]):
        want, have = (side.movedim(axis, 0).reshape(side.shape[axis], -1) for side in (seen.want, seen.have))
        if not 1 < len(want) <= 256:
            continue
        size = want.abs().max().clamp(min=1e-300)
        nearest = [int((want - row).abs().amax(dim=1).argmin()) for row in have]
        if sorted(nearest) == list(range(len(want))) and bool((want[nearest] - have).abs().max() <= CLOSE * size):
            moved = [f"{at} is {name} {there}" for at, there in enumerate(nearest) if at != there]
            how = _order(nearest)
            return f"{name}s are in another order{how}: {name} {'; '.join(moved[:3])}" if moved else None
    return None


def _order(order: Sequence[int]) -> str:
    n = len(order)
    if list(order) == list(range(n))[::-1]:
        return ", reversed"
    if len({(there - at) % n for at, there in enumerate(order)}) == 1:
        return ", shifted"
    strides = [width for width in range(2, n) if n % width == 0]
    tiled = any([at % width * (n // width) + at // width for at in range(n)] == list(order) for width in strides)
    return ", as when grouped heads are tiled for repeated, or repeated for tiled" if tiled else ""


def _words_of_several_tokens(seen: Numbers) -> str | None:
    if "slot" not in seen.axes:
        return None
    wrong = seen.indices(list(seen.axes).index("slot"))
    if not wrong or not set(wrong) <= seen.words or len(wrong) == 1 < len(seen.words):
        return None
    return f"only slots of words with several tokens differ ({len(wrong)}): look at their average"


def _one_place(seen: Numbers) -> str | None:
    """Along some axis a single index is wrong, or every one but the first, or every second."""
    for axis, name in enumerate(seen.axes[: seen.want.ndim]):
        n, wrong = seen.want.shape[axis], seen.indices(axis)
        if name in {"dim", "token_id"} or n < 3 or not wrong:
            continue
        if len(wrong) == 1:
            which = "the last " if wrong[0] == n - 1 else "the first " if wrong[0] == 0 else ""
            there = of_numbers(seen.under(axis, wrong[0])) if seen.want.ndim > 1 else None
            told = f"only {which}{name} differs" if which else f"only {name} {wrong[0]} differs"
            return f"{told}; there {there}" if there else told
        if wrong == list(range(1, n)):
            return f"every {name} but the first differs"
        if wrong == list(range(n - 1)):
            return f"every {name} but the last differs"
        if wrong in (list(range(0, n, 2)), list(range(1, n, 2))) and n > 3:
            return f"every second {name} differs, as when key and value heads are given to the wrong heads"
    return None


def _from_a_place_on(seen: Numbers) -> str | None:
    for name in {"layer", "slot"} & set(seen.axes[: seen.want.ndim]):
        wrong, n = seen.indices(axis := list(seen.axes).index(name)), seen.want.shape[axis]
        if wrong and wrong[0] > 0 and wrong == list(range(wrong[0], n)):
            return f"everything from {name} {wrong[0]} on differs"
    return None


def _grouped_heads(seen: Numbers) -> str | None:
    """In the first layer that differs, the heads for which tiling key and value heads is another thing than repeating them."""
    if tuple(seen.axes[:2]) != ("layer", "head") or seen.wrong.ndim < 3 or not (layers := seen.indices(0)):
        return None
    found = [int(head) for head in seen.wrong[layers[0]].flatten(1).any(dim=1).nonzero().flatten()]
    n = seen.want.shape[1]
    for width in (width for width in range(2, n) if n % width == 0):
        if found == [head for head in range(n) if head % width != head // (n // width)]:
            return f"in layer {layers[0]} just the heads differ that get another of {width} key and value heads when those are tiled"
    return None


def _half_precision(seen: Numbers) -> str | None:
    """Relative errors of the size of half precision's rounding, everywhere."""
    off = ((seen.have - seen.want).abs() / seen.want.abs().clamp(min=1e-30)).flatten()
    middle, most = float(off.median()), float(off.quantile(0.9)) if off.numel() < 10**6 else float("inf")
    for name, rounding in (("fp16", 2.0**-11), ("bf16", 2.0**-8)):
        if rounding / 16 < middle < 2 * rounding and most < 16 * rounding and seen.want.numel() > 16:
            return f"errors are of the size of {name}'s rounding everywhere: was something kept in half precision?"
    return None


SIGNATURES: tuple[Callable[[Numbers], str | None], ...] = (
    _not_finite,
    _all_zero,
    _dropped,
    _factor,
    _offset,
    _differences,
    _words_of_several_tokens,
    _another_order,
    _rounded,
    _one_place,
    _from_a_place_on,
    _grouped_heads,
    _half_precision,
)


def of_numbers(seen: Numbers) -> str | None:
    """The first signature that fits a tensor that differs."""
    return next(filter(None, (signature(seen) for signature in SIGNATURES)), None)


def of_artifact(
    key: str,
    expected: Artifact,
    actual: Artifact,
    tolerance_of: Callable[[str], Tolerance],
    axes: Callable[[str], Sequence[str]],
    words: frozenset[int] = frozenset(),
) -> str | None:
    """What the differences of an artifact give away: by which leaves differ, or else by the first tensor among them."""
    import torch

    wrong = {leaf: value for leaf, value in expected.items() if _differs(value, actual.get(leaf), tolerance_of(leaf))}
    cast = {leaf: value for leaf, value in wrong.items() if _only_cast(value, actual.get(leaf), tolerance_of(leaf))}
    wrong = {leaf: value for leaf, value in wrong.items() if leaf not in cast}
    told = [_of_cast(cast)]
    if key in OF_LEAVES and wrong and not any(_misshapen(value, actual.get(leaf)) for leaf, value in wrong.items()):
        told.append(OF_LEAVES[key](expected, actual, wrong))
    for leaf, value in wrong.items():
        other = actual.get(leaf)
        if isinstance(value, torch.Tensor) and isinstance(other, torch.Tensor) and value.shape == other.shape:
            want, have = (side.detach().double().cpu() for side in (value, other))
            told.append(of_numbers(Numbers(want, have, tolerance_of(leaf).allowed(want), axes(leaf), words)))
            if told[-1]:
                break
    return "; ".join(filter(None, told)) or None


def signed(
    run: ParityRun,
    key: str,
    verdict: Verdict,
    expected: Artifact,
    actual: Artifact,
    axes: Callable[[str], Sequence[str]],
) -> Verdict:
    """A failed verdict with what its differences give away, if they do: `details["signature"]`."""
    try:
        words = _words_slots(run.expected("slot_map")) if key == "mean_activations" else frozenset[int]()
        told = of_artifact(key, expected, actual, run.tolerances.of(key), axes, words)
        if key == "fv_vector" and run.model is not None:
            told = of_biases(run.model, run.expected("top_heads")["heads"], expected, actual) or told
        if key == "mean_activations" and run.model is not None:
            told = of_another_place(run, actual) or told
    except Exception:  # an answer of any form may come here, and its verdict stands without a word on its pattern
        told = None
    return verdict if told is None else replace(verdict, details={**verdict.details, "signature": told})


def of_biases(model: nn.Module, heads: Any, expected: Artifact, actual: Artifact) -> str | None:
    """Whether a vector is off by whole multiples of the output projections' biases of its heads' layers, and by which."""
    import torch

    from fvcore.artifacts import tensor_leaf
    from fvcore.model.model import LanguageModel

    lm = LanguageModel.wrap(model)
    of_heads = [layer for layer, _ in heads]
    layers = sorted(set(of_heads))
    biases: list[Any] = [getattr(lm.o_proj(layer), "bias", None) for layer in layers]
    want, have = (tensor_leaf(side, "function_vector").detach().double().cpu() for side in (expected, actual))
    if not layers or any(bias is None for bias in biases):
        return None
    columns = torch.stack([bias.detach().double().cpu() for bias in biases], dim=1)
    off = (have - want)[:, None]
    times = torch.linalg.lstsq(columns, off).solution.flatten()
    if (columns @ times.round()[:, None] - off).abs().max() > CLOSE * off.abs().max() or not times.round().any():
        return None
    counted = [of_heads.count(layer) for layer in layers]
    if times.round().tolist() == [-float(n) for n in counted]:
        return "off by the bias of every head's output projection: it is left out"
    told = ", ".join(f"layer {layer} {int(n):+d}" for layer, n in zip(layers, times.round().tolist(), strict=True) if n)
    return f"off by whole multiples of the output projections' biases ({told}): each head's term holds its own once"


def of_another_place(run: ParityRun, actual: Artifact) -> str | None:
    """Whether the means at the last slot are those of another place in the attention than where its heads are read."""
    import torch

    from fvcore.model.hooks import watch_modules
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import trial_keys
    from pytest_fvparity.parity.partial import LAST_SLOT

    assert run.model is not None
    lm, prompts = LanguageModel.wrap(run.model), run.expected("prompt_boundary")
    given: Any = actual.get(LAST_SLOT)
    means: Any = actual["mean_activations"][:, :, -1] if given is None else given  # type: ignore[index,call-overload]
    found = {place: torch.zeros(lm.n_layers, lm.d_model, dtype=torch.float64) for place in ELSEWHERE}
    projections = {lm.spec.out_proj_path(layer): layer for layer in lm.head_layers}
    attentions = {name.removesuffix(f".{lm.spec.out_proj_path_in_attn}"): at for name, at in projections.items()}

    def see(name: str, side: str, tensor: Tensor | None, _: Any) -> None:
        layers = attentions if side == "input" else projections
        if name in layers and tensor is not None:
            found[side][layers[name]] += tensor[0, -1].double().cpu()

    keys = trial_keys(prompts)
    with torch.inference_mode(), watch_modules(run.model, see):
        for key in keys:
            ids: Any = prompts[f"{key}/clean/input_ids"]
            lm.logits(lm.ids(ids))
    have = means.detach().double().cpu().flatten(1)
    fits = [place for place, sums in found.items() if _same_size_and_close(have, sums / len(keys))]
    return f"the means at the last slot are those of {ELSEWHERE[fits[0]]}: {READ_THERE}" if fits else None


ELSEWHERE = {"input": "what enters attention", "output": "what leaves its output projection"}
READ_THERE = "a head's activation is what enters the projection"


def _same_size_and_close(have: Tensor, want: Tensor) -> bool:
    return have.shape == want.shape and bool((have - want).abs().max() <= CLOSE * want.abs().max())


def _words_slots(slot_map: Artifact) -> frozenset[int]:
    """The slots of words that are of several tokens in some clean prompt."""
    from fvcore.pipeline import slots_of, trial_keys

    maps = [slots_of(slot_map, key, "clean") for key in trial_keys(slot_map)]
    return frozenset(one.idx_map[first] for one in maps for first, _ in one.idx_avg.values())


def _differs(want: Any, have: Any, tolerance: Tolerance) -> bool:
    from fvcore.compare import compare_leaf

    return have is None or not compare_leaf("", want, have, tolerance, (), most=0).passed


def _only_cast(want: Any, have: Any, tolerance: Tolerance) -> bool:
    """Whether a tensor has the values that are expected, in another dtype."""
    from torch import Tensor

    from fvcore.compare import beside

    if not (isinstance(want, Tensor) and isinstance(have, Tensor)) or want.shape != have.shape:
        return False
    return want.dtype != have.dtype and not beside(want, have, tolerance)[-1].any()


def _of_cast(leaves: Mapping[str, Any]) -> str | None:
    """What to give instead, a name once for all trials."""
    give = dict.fromkeys(f"{leaf.rpartition('/')[2]}.to({value.dtype})" for leaf, value in leaves.items())
    return f"the same values in another dtype: give {', '.join(give)}" if give else None


def _misshapen(want: Any, have: Any) -> bool:
    """Whether both are tensors of different shapes, of whose values nothing can be said."""
    from torch import Tensor

    return isinstance(want, Tensor) and isinstance(have, Tensor) and want.shape != have.shape


def _names(leaves: Mapping[str, Any]) -> set[str]:
    return {leaf.rpartition("/")[2] for leaf in leaves}


def _of_prompts(expected: Artifact, actual: Artifact, wrong: Mapping[str, Any]) -> str | None:
    """How texts and ids differ that differ alike everywhere."""
    pairs: list[tuple[str, Any, Any]] = [(leaf, want, actual.get(leaf)) for leaf, want in wrong.items()]
    texts = [(want, have) for leaf, want, have in pairs if leaf.endswith("/text")]
    ids = [(want, have) for leaf, want, have in pairs if leaf.endswith("/input_ids")]
    if not texts and not ids:
        named = _names(wrong)
        return "prompts agree, only targets differ: look at how an answer becomes ids" if named <= TARGETS else None
    if texts and all(isinstance(have, str) and have == f"{want} " for want, have in texts):
        return "every prompt that differs has a space more at its end"
    if texts and all(isinstance(have, str) and _lacks_last_demo(want, have) for want, have in texts):
        return "every prompt that differs lacks its last demonstration"
    if texts and all(isinstance(have, str) and have.split() == want.split() for want, have in texts):
        return "texts differ in white space alone: look at where words and answers get their space"
    if not all(isinstance(side, list) for pair in ids for side in pair):
        return None
    if all(have[1:] == want for want, have in ids):
        more = "every prompt that differs has one token more at its start: look at the BOS"
        written = texts and all(isinstance(have, str) and have.endswith(want) for want, have in texts)
        return f"{more}{UPSTREAM if written else ''}"
    if all(have == want[1:] for want, have in ids):
        return "every prompt that differs lacks its first token: look at the BOS"
    if all(have[:-1] == want for want, have in ids):
        return "every prompt that differs has one token more at its end"
    regimes = {leaf.split("/")[1] for leaf in wrong if leaf.endswith("/text")}
    return "only corrupted prompts differ: look at how labels are shuffled" if regimes == {"corrupted"} else None


def _lacks_last_demo(want: str, have: str) -> bool:
    """Whether one piece is lacking, with all lines of a demonstration, and fewer lines stand behind it."""
    from fvcore.formats import parting

    at, n_less = parting(want, have), len(want) - len(have)
    behind = have[at:]
    return n_less > 0 and want[at + n_less :] == behind and behind.count("\n") < want[at : at + n_less].count("\n")


TARGETS = {"target_id", "answer_ids"}
UPSTREAM = (
    "; its text is in the prompt, as the public repository writes it: --fv-reference-profile=todd_upstream compares so"
)


def _of_slots(expected: Artifact, actual: Artifact, wrong: Mapping[str, Any]) -> str | None:
    names = _names(wrong)
    predicting = [value for leaf, value in actual.items() if leaf.endswith("/query_predictive_token")]
    if "query_predictive_token" in names and set(map(repr, predicting)) == {"-1"}:
        return "no token predicts the answer: is the output prefix empty, or the last token left out?"
    if names == {"idx_avg"}:
        return "only the ranges that are averaged differ"
    if names <= {"query_predictive_slot", "query_predictive_token"}:
        return "slots agree, only the predictive one is another"
    if names <= {"labels", "dummy_labels"}:
        return "slots agree, only names of labels differ"
    return None


def _of_heads(expected: Artifact, actual: Artifact, wrong: Mapping[str, Any]) -> str | None:
    """Which of effects, their mean, and their ranking is the first to differ."""
    if "cie" in actual and "cie" not in wrong and "aie" in wrong:
        return "effects of single trials agree, their mean does not: look at what is averaged"
    if {"cie", "aie"} & actual.keys() and not {"cie", "aie"} & wrong.keys() and "heads" in wrong:
        return f"effects agree, their ranking does not{_ranking(expected['heads'], actual.get('heads'))}"
    if wrong.keys() == {"scores"}:
        return "effects and heads agree, only the scores shown beside them differ"
    return None


def _ranking(want: Any, have: Any) -> str:
    if not isinstance(want, list) or not isinstance(have, list):
        return ""
    if [head[::-1] for head in have if isinstance(head, list)] == want:
        return ": layer and head have changed places"
    return ": the same heads in another order" if sorted(map(repr, want)) == sorted(map(repr, have)) else ""


def _of_vector(expected: Artifact, actual: Artifact, wrong: Mapping[str, Any]) -> str | None:
    if "head_terms" not in wrong:
        return "each head's term agrees, their sum does not"
    return None


def _of_injection(expected: Artifact, actual: Artifact, wrong: Mapping[str, Any]) -> str | None:
    """Which runs differ, and which of what is read off them."""
    names = _names(wrong)
    if names <= {"base_nll", "with_nll"}:
        return f"only {' and '.join(sorted(names))} differ: look at the answer's positions, and where the vector stands then"
    if names <= {"base_generated", "with_generated"}:
        return "only generated ids differ: look at what is edited behind the first step"
    if names <= {"base_logprob", "with_logprob", "delta_logprob"}:
        return "logits agree, only log-probabilities differ"
    trials = {leaf.partition("/")[0] for leaf in wrong}
    every = {leaf.partition("/")[0] for leaf in expected}
    if len(trials) == 1 < len(every):
        return f"only trial {trials.pop()} differs"
    if (order := _trials_taken(expected, actual, every)) is not None:
        return order
    if all(name.startswith(("with_", "delta_")) for name in names):
        return "without the vector all agrees: look at how, where and how strongly it is added"
    return None


def _trials_taken(expected: Artifact, actual: Artifact, trials: set[str]) -> str | None:
    """Whether each trial was given another one's numbers."""
    from torch import Tensor

    def of(side: Artifact) -> dict[str, Any]:
        return {trial: side.get(f"{trial}/base_logits") for trial in sorted(trials)}

    want, have = of(expected), of(actual)
    if not all(isinstance(value, Tensor) for value in (*want.values(), *have.values())):
        return None

    def nearest(value: Tensor) -> str:
        same = {t: float((other - value).abs().max()) for t, other in want.items() if other.shape == value.shape}
        return min(same, key=lambda trial: same[trial], default="")

    taken = {trial: nearest(value) for trial, value in have.items()}
    moved = [f"{trial} has those of {other}" for trial, other in taken.items() if trial != other]
    right = sorted(taken.values()) == sorted(taken)
    return f"trials have one another's numbers: {'; '.join(moved[:3])}" if moved and right else None


OF_LEAVES: dict[str, Callable[[Artifact, Artifact, Mapping[str, Any]], str | None]] = {
    "prompt_boundary": _of_prompts,
    "slot_map": _of_slots,
    "top_heads": _of_heads,
    "fv_vector": _of_vector,
    "injection_output": _of_injection,
}
"""What is said by which leaves of a key differ."""
