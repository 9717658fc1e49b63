"""The transfer suite: a q_id's files hold what the stations give, within the tolerances of the check keys.

The first stage decides whether the files may be believed at all; the later ones read them. Trials are read once more as
the reference's side reads them, so that the golden of the same q_id is one of the same trials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

from fvcore.experiments.steps import layout
from fvcore.formats import read_json, read_jsonl
from fvcore.gates import Finding, NotProvided, Refused, Stage, Verdict, merge
from pytest_fvparity.fixtures import in_one_sentence
from pytest_fvparity.parity.ties import tied_heads

if TYPE_CHECKING:
    from torch import Tensor

    from pytest_fvparity.transfer.subject import Transfer

SHOWN = 20  # findings of one kind

PROVES_NOTHING = "the tolerance is as large as the stations' own values, so that zeros would pass"

SCORE = "mean_delta_p"
"""The score that is the stations' indirect effect."""


def qid_status(run: Transfer) -> Verdict:
    """Completed with every file it must have, or skipped for want of rows; of the model that the stations run on."""
    found, folder = run.status, run.folder.root.name
    if found.q_id != folder:
        return _same("q_id", f"the status in folder {folder} is of another", folder, found.q_id)
    if found.status == "skipped":
        needed = found.config["n_demos"] + 1
        enough = f"skipped, with {found.q_row_count} rows of {needed} needed"
        return _same("status", enough, None, None, holds=found.q_row_count < needed)
    if found.status != "completed":
        why = f": {found.reason}" if found.reason else ""
        return _same("status", f"{found.status}{why}", "completed", found.status)
    _require_same_model(run)
    layers = list(range(run.lm.n_layers))
    return merge(
        Verdict(compared=len(found.files)),
        _each("files", "is missing or was changed since", run.status.damage(run.folder)),
        _same("expected_layers", f"are not those of {run.lm.name}", layers, found.expected_layers),
    )


def _require_same_model(run: Transfer) -> None:
    here = {"weights_sha": run.lm.weights_sha, "tokenizer_sha": run.lm.tokenizer_sha, "dtype": run.lm.dtype}
    there = {name: run.status.settings.get(name) for name in here}
    if different := [
        f"{name}: run {there[name]!s:.12}, here {value:.12}" for name, value in here.items() if there[name] != value
    ]:
        raise Refused(
            f"the run is of another model than {run.lm.name}, nothing was compared. {'; '.join(different)}. Give the run's own: "
            "--fv-model=PATH, --fv-dtype"
        )


def sampled_trials(run: Transfer) -> Verdict:
    """As many as were asked for, of this q_id alone; strings, boundary and target as the tokenizer gives them."""
    from fvcore.prompts import verify

    n, asked = len(run.sampled.trials), run.status.config["n_trials_per_q"]
    problems = verify(run.fixed, run.lm.tokenizer)
    return merge(
        Verdict(compared=n),
        _same("n_trials", "is not what was asked for", asked, n),
        _same("q_id", "is another", [run.status.q_id], run.sampled.q_ids),
        _each("trials", "", problems),
    )


def mean_activations(run: Transfer) -> Verdict:
    """At the slot that predicts the answer: the run keeps no other."""
    from fvcore.artifacts import tensor_leaf

    own = tensor_leaf(run.means, "mean_activations")[:, :, -1].cpu()
    return _compared(run, "mean_activations", "mean_activations", own, run.clean_mean, ("layer", "head", "dim"))


def stepd_scores(run: Transfer) -> Verdict:
    """Every trial's effect, their mean in cie_scores.csv, and aie_scores.csv, which of one q_id is the same."""
    import torch

    cie, aie = (run.top_heads[leaf] for leaf in ("cie", "aie"))
    assert isinstance(cie, torch.Tensor)
    assert isinstance(aie, torch.Tensor)
    verdicts = []
    for name in (layout.CIE, layout.AIE):
        found, swept = torch.zeros_like(aie, dtype=torch.float64), torch.zeros_like(aie, dtype=torch.bool)
        for row in run.scores(name):
            found[row["layer"], row["head"]], swept[row["layer"], row["head"]] = row[SCORE], True
        verdicts.append(_same(name, "heads are missing", swept.numel(), int(swept.sum())))
        own = torch.where(swept.cpu(), aie.cpu().double(), 0.0)
        verdicts.append(_at(name, _compared(run, "top_heads", "aie", own, found, ("layer", "head"))))
        verdicts.append(_at(name, _digits(found, run.delta_p.mean(dim=0))))
    twice = "rows are missing, or there twice"
    verdicts.append(_same(layout.TRIAL_METRICS, twice, run.delta_p.numel(), len(run.metrics)))
    own_trials = _compared(run, "top_heads", "cie", cie.cpu().double(), run.delta_p, ("trial", "layer", "head"))
    return merge(_at(layout.TRIAL_METRICS, own_trials), *verdicts)


def _digits(written: Tensor, own: Tensor) -> Verdict:
    """A score is the mean of its own trials to the last digits: heads are ranked by what stands in the file."""
    lost = (written - own).abs() > 1e-12 + 1e-9 * own.abs()
    where = [(int(layer), int(head)) for layer, head in lost.nonzero()]
    findings = tuple(
        Finding(
            f"{SCORE}[layer {layer}, head {head}]",
            "is not the mean of its trials; was it written with fixed decimals?",
            float(own[layer, head]),
            float(written[layer, head]),
            {"layer": layer, "head": head},
        )
        for layer, head in where[:SHOWN]
    )
    return Verdict(findings, compared=written.numel(), mismatch_count=len(where))


def stepe_heads(run: Transfer) -> Verdict:
    """The same heads in the same order; where the stations' own effects leave the order open, that is a tie."""
    from fvcore.artifacts import tensor_leaf

    if (score := run.status.config["score_key"]) != SCORE:
        raise NotProvided(f"heads were chosen by {score}; the stations know {SCORE} alone")
    own, found = [list(head) for head in run.top_heads["heads"]], run.heads  # type: ignore[union-attr]
    if problem := _not_heads(run, found):
        return _same("top_heads.json", problem, None, None, holds=False)
    others = [(rank, *pair) for rank, pair in enumerate(zip(own, found, strict=True)) if pair[0] != pair[1]]
    aie, tolerance = tensor_leaf(run.top_heads, "aie"), run.tolerances.of("top_heads")("aie")
    tied = bool(others) and tied_heads(own, found, aie, run.delta_p.mean(dim=0), tolerance)
    message = "tie: the effects are the same within tolerance" if tied else "another head"
    findings = [
        Finding(f"rank {rank}", message, expected, actual, {"rank": rank}, blocking=not tied)
        for rank, expected, actual in others
    ]
    return Verdict(tuple(findings), len(own), 0 if tied else len(findings))


def _not_heads(run: Transfer, heads: Sequence[Sequence[int]]) -> str:
    lm, topk = run.lm, run.status.config["topk"]
    if len(heads) != topk:
        return f"{len(heads)} heads, topk is {topk}"
    if outside := [h for h in heads if not (0 <= h[0] < lm.n_layers and 0 <= h[1] < lm.n_heads)]:
        return f"no head {outside[0]} in {lm.name}"
    return "" if len({tuple(h) for h in heads}) == len(heads) else "a head stands twice"


def stepe_vector(run: Transfer) -> Verdict:
    """Of the run's own heads, so that a tie among them is no second failure."""
    own = run.vector_of(run.heads)
    return _compared(run, "fv_vector", "function_vector", own.float(), run.vector.float(), ("dim",))


def step6_summary(run: Transfer) -> Verdict:
    """No layer missing, each one's score the mean of its own rows, the best one the first of the largest; and the first
    example of each layer as the station injects."""
    value, layers = read_json(run.folder / layout.ALL_LAYERS), list(range(run.lm.n_layers))
    verdicts = [
        _same("expected_layers", "are others", layers, value["expected_layers"]),
        _same("missing_layers", "there are some", [], value["missing_layers"]),
        _same("completed_layers", "are others", layers, value["completed_layers"]),
        _same("q_id", "is another", run.status.q_id, value["q_id"]),
    ]
    if not all(verdict.passed for verdict in verdicts):
        return merge(*verdicts)
    scores = []
    for layer in layers:
        entry = value["per_layer"][str(layer)]
        rows = read_jsonl(run.folder / entry["layer_dir"] / "eval_trials.jsonl")
        own = fmean(row[entry["score_key"].removeprefix("mean_")] for row in rows)
        verdicts.append(_at(f"layer {layer}", _injected(run, layer, rows[0])))
        scores.append(entry["score_value"])
        same = abs(own - entry["score_value"]) <= 1e-9 * max(1.0, abs(own))
        not_mean = "its score is not the mean of its rows"
        verdicts.append(_same(f"layer {layer}", not_mean, own, scores[-1], holds=same))
    return merge(*verdicts, _same("best_layer", "is another", scores.index(max(scores)), value["best_layer"]))


def _injected(run: Transfer, layer: int, row: dict[str, Any]) -> Verdict:
    """One example, injected by the station with the run's own vector."""
    from fvcore.compare import compare

    own = run.injected(layer, row)
    found = {leaf: row[name] for leaf, name in (("base_logprob", "logprob_base"), ("with_logprob", "logprob_with"))}
    return compare(own, found, run.tolerances.of("injection_output"), lambda _: ())


def _compared(run: Transfer, key: str, leaf: str, expected: Tensor, actual: Tensor, axes: tuple[str, ...]) -> Verdict:
    from fvcore.compare import compare

    found = compare({leaf: expected}, {leaf: actual.to(expected.device)}, run.tolerances.of(key), lambda _: axes)
    if not run.tolerances.proving_nothing(key, {leaf: expected}):
        return found
    # A relation that the model does not know at all has effects of this size.
    return merge(found, Verdict((Finding(leaf, PROVES_NOTHING, blocking=False),)))


def _at(name: str, verdict: Verdict) -> Verdict:
    """The verdict with the file's name in front of where."""
    return replace(verdict, findings=tuple(replace(f, where=f"{name} {f.where}") for f in verdict.findings))


def _same(where: str, message: str, expected: Any, actual: Any, holds: bool | None = None) -> Verdict:
    """One comparison: by `holds`, or by whether the two are equal."""
    if expected == actual if holds is None else holds:
        return Verdict(compared=1)
    return Verdict((Finding(where, message, expected, actual),), compared=1, mismatch_count=1)


def _each(where: str, what: str, names: Iterable[str]) -> Verdict:
    """A finding for each name, the first ones shown."""
    found = list(names)
    shown = tuple(Finding(where, f"{name} {what}".strip()) for name in found[:SHOWN])
    return Verdict(shown, mismatch_count=len(found))


CHECKS: tuple[tuple[str, Callable[[Transfer], Verdict]], ...] = (
    ("Status, every required file, and the model", qid_status),
    ("Frozen trials", sampled_trials),
    ("StepD's means and the stations'", mean_activations),
    ("StepD's scores and the stations' effects", stepd_scores),
    ("StepE's heads and the stations'", stepe_heads),
    ("StepE's vector and the stations'", stepe_vector),
    ("Step6 at every layer", step6_summary),
)
STAGES: tuple[Stage[Transfer], ...] = tuple(
    Stage(check.__name__, title, in_one_sentence()(check)) for title, check in CHECKS
)
KEYS = tuple(stage.key for stage in STAGES)
