"""What some check keys say beyond their leaves: names in coordinates, ties, and what a number must be worth by itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from fvcore.gates import Finding, Verdict, merge
from pytest_fvparity.parity.ties import may_swap, tied_heads

if TYPE_CHECKING:
    from torch import Tensor

    from fvcore.artifacts import Artifact
    from pytest_fvparity.parity.checks import ParityRun

OWN_LOGPROB = 1e-4
"""How far (nats) a log-probability may be from the candidate's own logits: fp32 is within 1e-6, fp16 is off by 1e-3."""

TAIL = 16
"""How many ids of a prompt's end are shown."""

Known = Mapping[str, Mapping[int, Mapping[str, int | str]]]
"""Axis -> index -> what joins its coordinate."""


def _at_the_boundary(run: ParityRun, verdict: Verdict, expected: Artifact, actual: Artifact) -> Verdict:
    """How the first prompt that differs ends, on either side; and a BOS that stands twice is worth a word."""
    notes = _doubled_bos(expected, actual)
    prompt = verdict.first_mismatch.where.rpartition("/")[0] if verdict.first_mismatch else ""
    if f"{prompt}/input_ids" in expected:
        ends = _end(expected, prompt), _end(actual, prompt)
        notes.append(Finding(prompt, "how this prompt ends: text and last ids", *ends, blocking=False))
    return replace(verdict, findings=(*verdict.findings, *notes))


def _end(artifact: Artifact, prompt: str) -> str:
    ids, text = artifact.get(f"{prompt}/input_ids"), artifact.get(f"{prompt}/text")
    shown = text[-2 * TAIL :] if isinstance(text, str) else text
    return f"{shown!r} {ids[-TAIL:] if isinstance(ids, list) else ids}"


def _doubled_bos(expected: Artifact, actual: Artifact) -> list[Finding]:
    """Both sides may agree on a BOS that stands twice, and every number is another one for it."""
    bos = expected.get("bos/bos_token_id")
    ids = {leaf: value for leaf, value in actual.items() if leaf.endswith("/input_ids") and isinstance(value, list)}
    twice = [] if bos is None else [leaf for leaf, value in ids.items() if value[:2] == [bos, bos]]
    message = f"BOS (id {bos}) stands twice at the start of {len(twice)} prompt(s): in the text, and from the tokenizer"
    return [Finding(leaf, message, blocking=False) for leaf in twice[:1]]


def _named_slots(run: ParityRun, verdict: Verdict, expected: Artifact, actual: Artifact) -> Verdict:
    """A slot's number says little: its label joins the coordinate."""
    return _named(verdict, known_by(run, "mean_activations"))


def _named(verdict: Verdict, known: Known) -> Verdict:
    return replace(verdict, findings=tuple(named(finding, known) for finding in verdict.findings))


def named(finding: Finding, known: Known) -> Finding:
    """What a place is known by joins its coordinate; a label stands beside the number."""
    for axis, names in known.items():
        at: Any = finding.coordinate.get(axis)
        more = names.get(at, {})
        label = f" ({more['slot_label']})" if "slot_label" in more else ""
        where = finding.where.replace(f"{axis} {at}", f"{axis} {at}{label}")
        finding = replace(finding, where=where, coordinate={**finding.coordinate, **more})
    return finding


def known_by(run: ParityRun, key: str) -> Known:
    """A slot's label, a trial's two numbers, the head of a rank."""
    from fvcore.pipeline import trial_keys

    def listed(leaf_of: str, leaf: str) -> list[list[Any]]:
        return cast("list[list[Any]]", run.expected(leaf_of)[leaf])

    if key == "mean_activations":
        return {"slot": {slot: {"slot_label": label} for slot, label in listed("slot_map", "dummy_labels")}}
    if key == "fv_vector":
        heads = enumerate(listed("top_heads", "heads"))
        return {"rank": {rank: {"layer": layer, "head": head} for rank, (layer, head) in heads}}
    if key == "top_heads":
        return {"trial": dict(enumerate(map(trial_numbers, trial_keys(run.expected("prompt_boundary")))))}
    return {}


def trial_numbers(key: str) -> dict[str, int | str]:
    """A trial's key, as the two numbers it is made of."""
    return dict(zip(("trial_id", "trial_idx"), map(int, key.split(":")), strict=True))


def _judged_heads(run: ParityRun, verdict: Verdict, expected: Artifact, actual: Artifact) -> Verdict:
    """Heads in another order are a tie if the golden's own effects leave the order open, and a fault otherwise."""
    import torch

    from fvcore.compare import compare

    want, have, aie = _pairs(expected), _pairs(actual), run.expected("top_heads").get("aie")
    aie = expected.get("aie", aie)
    own = actual.get("aie", aie)  # of a candidate that gives heads alone, the reference's say what is near
    verdict = _named(verdict, known_by(run, "top_heads"))  # a row of the CIE tensor is a trial
    details = {
        **verdict.details,
        "aie_expected": _rows(expected, "aie", 2),
        "aie_actual": _rows(actual, "aie", 2),
        "heads_expected": want,
        "heads_actual": have,
        "scores_actual": _rows(actual, "scores", 1),
    }
    verdict = replace(verdict, details=details)
    at_heads = [f for f in verdict.findings if f.where.startswith("heads[")]
    if want is None or have is None or not (isinstance(aie, torch.Tensor) and isinstance(own, torch.Tensor)):
        return verdict
    if not at_heads or not tied_heads(want, have, aie, own, run.tolerances.of("top_heads")("aie")):
        return verdict
    run.memory.tied.add("top_heads")
    findings = []
    for found in verdict.findings:
        message = f"tie: {found.message}; their effects differ by less than the tolerance"
        findings.append(replace(found, blocking=False, message=message) if found in at_heads else found)
    n_swapped = compare({"heads": expected["heads"]}, {"heads": actual["heads"]}).mismatch_count
    measurements = {**verdict.measurements, "tied_ranks": sum(w != h for w, h in zip(want, have, strict=True))}
    n_left = verdict.mismatch_count - n_swapped
    return replace(verdict, findings=tuple(findings), mismatch_count=n_left, measurements=measurements)


def _measured_vector(run: ParityRun, verdict: Verdict, expected: Artifact, actual: Artifact) -> Verdict:
    """Cosine and norms, as measurements: a wrong scale has cosine 1, a wrong direction the same norm."""
    import torch

    pair = [_numbers(side.get("function_vector")) for side in (expected, actual)]
    want, have = (None if vector is None else vector.flatten() for vector in pair)
    if want is None or have is None or want.shape != have.shape:
        return verdict
    measured = {
        "cosine": float(torch.nn.functional.cosine_similarity(want, have, dim=0)),
        "norm_expected": float(want.norm()),
        "norm_actual": float(have.norm()),
    }
    verdict = replace(verdict, measurements={**verdict.measurements, **measured})
    faults = _not_its_terms(actual)
    return merge(Verdict(tuple(faults), mismatch_count=len(faults)), verdict)


def _numbers(value: Any) -> Tensor | None:
    """A tensor in float64 on the CPU, if it is one."""
    import torch

    return value.detach().double().cpu() if isinstance(value, torch.Tensor) else None


def _not_its_terms(actual: Artifact) -> list[Finding]:
    """In half precision: where the vector is not the sum of its heads' terms, rounded once.

    A sum kept in half precision is off by a few tenths of a percent, far inside any tolerance of that dtype, and it is
    a fault all the same; the candidate's own terms show it.
    """
    import torch

    vector, terms = actual.get("function_vector"), actual.get("head_terms")
    if not (isinstance(vector, torch.Tensor) and isinstance(terms, torch.Tensor)):
        return []
    have, each = vector.detach().double().cpu(), terms.detach().double().cpu()
    if vector.dtype not in {torch.float16, torch.bfloat16} or each.ndim != 2 or each.shape[1:] != have.shape:
        return []
    total, size, info = each.sum(dim=0), each.abs().sum(dim=0), torch.finfo(vector.dtype)
    one_rounding = (total.abs() * info.eps / 2).clamp(min=info.smallest_normal * info.eps / 2)
    wrong = ((have - total).abs() > 1.01 * one_rounding + size * 2.0**-20).nonzero().flatten().tolist()
    message = (
        f"is not the sum of its head_terms rounded once, at {len(wrong)} dims: was the sum kept in half precision?"
    )
    return [
        Finding(f"function_vector[dim {dim}]", message, float(total[dim]), float(have[dim]), {"dim": dim})
        for dim in wrong[:1]
    ]


def _moved_logits(run: ParityRun, verdict: Verdict, expected: Artifact, actual: Artifact) -> Verdict:
    """The vector must do something on every trial; and the per-trial table of the report."""
    import torch

    from fvcore.pipeline import trial_keys

    idle, found = [], list[Finding]()
    for key in trial_keys(actual):
        base, injected = (actual.get(f"{key}/{name}_logits") for name in ("base", "with"))
        if isinstance(base, torch.Tensor) and isinstance(injected, torch.Tensor) and torch.equal(base, injected):
            idle.append(key)
        found += _not_its_logits(key, actual)
    table = [_trial_row(run, key, expected, actual) for key in trial_keys(expected)]
    verdict = _generation_ties(run, verdict, expected, actual)
    verdict = replace(verdict, details={**verdict.details, "trials": table})
    if idle:
        more = f" and {len(idle) - 5} more" if len(idle) > 5 else ""
        message = (
            f"injection had no effect: no logit moved on trial(s) {', '.join(idle[:5])}{more}; the vector is zero, or what was edited "
            f"is not what the block hands on{_block_output(run)}"
        )
        found.insert(0, Finding("with_logits", message))
    return merge(Verdict(tuple(found), mismatch_count=len(found)), verdict)


def _block_output(run: ParityRun) -> str:
    """What the model's blocks return, which is what an edit that reaches nothing is usually wrong about."""
    if run.model is None:
        return ""
    from fvcore.model.diagnostics import block_output
    from fvcore.model.model import LanguageModel
    from fvcore.model.spec import ModelError

    try:
        return f" (blocks of this model return: {block_output(LanguageModel.wrap(run.model))})"
    except ModelError:
        return ""


def _generation_ties(run: ParityRun, verdict: Verdict, expected: Artifact, actual: Artifact) -> Verdict:
    """Generated ids that part where two tokens are as good as each other are a tie, and a fault otherwise."""
    from fvcore.compare import compare

    findings, n_tied = [], 0
    for finding in verdict.findings:
        leaf, _, position = finding.where.partition("[")
        apart = _tokens_apart(run, leaf, expected, actual) if position and leaf.endswith("_generated") else None
        if apart is not None:
            n_tied += compare({leaf: expected[leaf]}, {leaf: actual[leaf]}).mismatch_count
            message = f"tie: {finding.message}; there the logits of the two tokens differ by {apart:.3g}"
            finding = replace(finding, blocking=False, message=message)
        findings.append(finding)
    return replace(verdict, findings=tuple(findings), mismatch_count=verdict.mismatch_count - n_tied)


def _tokens_apart(run: ParityRun, leaf: str, expected: Artifact, actual: Artifact) -> float | None:
    """By how much the golden's token beats the candidate's where the two generations part, if it is within tolerance.

    What either generates behind that place follows from another text, and says nothing.
    """
    import torch

    want, have, (trial, _, name) = expected.get(leaf), actual.get(leaf), leaf.partition("/")
    mode = name.removesuffix("_generated")
    logits = expected.get(f"{trial}/{mode}_logits")
    if run.continuation is None or not isinstance(logits, torch.Tensor):
        return None
    if not (isinstance(want, list) and isinstance(have, list)):
        return None
    if not all(type(token) is int and 0 <= token < len(logits) for token in (*want, *have)):
        return None
    at = next((i for i, pair in enumerate(zip(want, have, strict=False)) if pair[0] != pair[1]), None)
    if at is None:  # one is the beginning of the other: the number of tokens is no near tie
        return None
    following = run.continuation(trial, mode, want[:at]).double()
    apart = abs(float(following[want[at]] - following[have[at]]))
    off = _legally_off(run, f"{mode}_logits", logits)
    return apart if may_swap(apart, off, off) else None


def _legally_off(run: ParityRun, leaf: str, logits: Tensor) -> float:
    """How far a legal variation may move a logit: two of them may change places up to twice of it apart.

    In half precision the tolerance is wider than many a gap between tokens, so that a fault would pass for a tie: there
    it is what the golden's own variations moved, and one rounding of the largest logit at least.
    """
    import torch

    want = logits.detach().double().cpu()
    if logits.dtype not in {torch.float16, torch.bfloat16}:
        return float(run.tolerances.of("injection_output")(leaf).allowed(want).max())
    rounding = torch.finfo(logits.dtype).eps * float(want.abs().max())
    return max(rounding, run.tolerances.noise.largest.get("injection_output", {}).get(leaf, 0.0))


def _not_its_logits(key: str, actual: Artifact) -> list[Finding]:
    """Log-probabilities that are not those of the candidate's own logits: a log-softmax in half precision."""
    from fvcore.compare import TRIAL_KEY

    if not TRIAL_KEY.fullmatch(key):
        return []
    found, target = [], actual.get(f"{key}/target_id")
    for name in ("base", "with"):
        logits, logprob = _numbers(actual.get(f"{key}/{name}_logits")), actual.get(f"{key}/{name}_logprob")
        if logits is None or logits.ndim != 1 or not isinstance(logprob, float):
            continue
        if type(target) is not int or not 0 <= target < len(logits):
            continue
        own = float(logits.log_softmax(dim=-1)[target])
        if (off := abs(own - logprob)) > OWN_LOGPROB:
            message = f"differs by {off:.3g} from that of the candidate's own logits: taken in half precision?"
            found.append(Finding(f"{key}/{name}_logprob", message, own, logprob, trial_numbers(key), off))
    return found


def _trial_row(run: ParityRun, key: str, expected: Artifact, actual: Artifact) -> dict[str, Any]:
    """Both sides' log-probabilities of a trial, and which of them are outside their tolerance."""
    from fvcore.compare import compare_leaf

    tolerance_of = run.tolerances.of("injection_output")
    row: dict[str, Any] = {**trial_numbers(key), "target_id": expected.get(f"{key}/target_id")}
    for name in ("base", "with", "delta"):
        pair = [side.get(f"{key}/{name}_logprob") for side in (expected, actual)]
        src, fv = (float(value) if isinstance(value, int | float) else None for value in pair)
        row[f"{name}_logprob_src"], row[f"{name}_logprob_fv"] = src, fv
        row[f"{name}_logprob_abs_diff"] = None if src is None or fv is None else abs(src - fv)
        leaf = f"{name}_logprob"
        row[f"{leaf}_outside"] = (
            src is not None and fv is not None and not compare_leaf(leaf, src, fv, tolerance_of(leaf), ()).passed
        )
    for name in ("base", "with"):
        want, have = (_numbers(side.get(f"{key}/{name}_logits")) for side in (expected, actual))
        row[f"{name}_logits_max_abs_diff"] = None
        if want is not None and have is not None and want.shape == have.shape:
            row[f"{name}_logits_max_abs_diff"] = float((want - have).abs().max())
    return row


def _rows(artifact: Mapping[str, Any], leaf: str, ndim: int) -> Any:
    """A tensor as lists for the report, if it has the form the report draws."""
    import torch

    value = artifact.get(leaf)
    return value.double().tolist() if isinstance(value, torch.Tensor) and value.ndim == ndim else None


def _pairs(artifact: Mapping[str, Any]) -> list[list[int]] | None:
    """The heads, if they are a list of [layer, head]."""
    heads = artifact.get("heads")
    fit = isinstance(heads, list) and all(isinstance(h, list) and [type(i) for i in h] == [int, int] for h in heads)
    return cast("list[list[int]]", heads) if fit else None


REFINEMENTS: dict[str, Callable[[ParityRun, Verdict, Artifact, Artifact], Verdict]] = {
    "prompt_boundary": _at_the_boundary,
    "mean_activations": _named_slots,
    "top_heads": _judged_heads,
    "fv_vector": _measured_vector,
    "injection_output": _moved_logits,
}
"""What a key's verdict becomes by what is particular to that key."""
