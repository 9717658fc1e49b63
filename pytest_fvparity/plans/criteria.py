"""The plans' pass criteria, each read off the files that a script wrote: whether it is met, and a sentence with the numbers."""

import csv
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fvcore.artifacts import is_dense
from fvcore.formats import read_json, read_pt, read_text
from fvcore.trials.fixed import read as read_trials
from pytest_fvparity.report.render import REPORT, read_report, write_report
from pytest_fvparity.report.report import Report

Values: TypeAlias = Mapping[str, str]
Told: TypeAlias = tuple[bool, str]

CRITERIA: dict[str, Callable[[Values], Told]] = {}


def _criterion(judge: Callable[[Values], Told]) -> Callable[[Values], Told]:
    CRITERIA[judge.__name__] = judge
    return judge


def of(name: str, values: Values) -> Told:
    return CRITERIA[name](values)


def files(patterns: Sequence[str], values: Values) -> Iterator[Told]:
    """Each file that must be there; a `*` stands for a part of a name."""
    for pattern in patterns:
        path = Path(pattern.format(**values))
        found = sorted(path.parent.glob(path.name))
        yield bool(found), f"{found[0] if found else f'{path} is missing'}"


@_criterion
def first_token_is_first_answer_id(values: Values) -> Told:
    trials = read_trials(Path(values["out_path"])).file.trials
    other = [one.trial_id for one in trials if one.answer_ids and one.first_token_id != one.answer_ids[0]]
    return not other, f"first_token_id == answer_ids_first in {len(trials) - len(other)} of {len(trials)} trials"


def _report(folder: str, values: Values) -> Report:
    """The one that was written last: of a model of another name than its trials' it lies below."""
    place = Path(folder, values["dataset"], values["id"])
    found = sorted(place.rglob(f"{REPORT}.json"), key=lambda path: path.stat().st_mtime)
    return read_report(found[-1] if found else place / f"{REPORT}.json")


def _agrees(key: str, folder: str, values: Values) -> Told:
    report = _report(folder, values)
    check = report.by_key[key]
    return check.status == "PASS", f"{key}: mismatch_count {check.mismatch_count} of {check.n_compared} values compared"


@_criterion
def prompts_agree(values: Values) -> Told:
    return _agrees("prompt_boundary", "results_fv/m0_prompt_parity", values)


@_criterion
def slots_agree(values: Values) -> Told:
    return _agrees("slot_map", "results_fv/m0_slot_parity", values)


def _reference_file(name: str, values: Values) -> Any:
    return read_pt(Path(values["save_path_root"], values["dataset"], values["id"], f"{values['dataset']}_{name}.pt"))


def _rank(what: str, value: Any, rank: int) -> Told:
    found = value.ndim if is_dense(value) else None
    return found == rank, f"{what} rank {found}, expected {rank}"


@_criterion
def means_have_rank_4(values: Values) -> Told:
    return _rank("mean activations", _reference_file("mean_head_activations_FIXED", values), 4)


@_criterion
def effects_have_rank_3(values: Values) -> Told:
    return _rank("indirect effect (last token)", _reference_file("indirect_effect", values), 3)


def _suite(values: Values, name: str) -> Path:
    return Path("results_fv", values["dataset"], values["id"], name)


@_criterion
def every_stage_agrees(values: Values) -> Told:
    report = read_report(_suite(values, f"{REPORT}.json"))
    counts = ", ".join(f"{check.key} {check.mismatch_count}" for check in report.checks)
    met = report.overall_status == "PASS" and all(check.mismatch_count == 0 for check in report.checks)
    return met, f"suite {report.overall_status}, mismatch_count of each stage: {counts}"


@_criterion
def every_trial_once(values: Values) -> Told:
    rows = list(csv.DictReader(read_text(_suite(values, "injection_parity_trials.csv")).splitlines()))
    counts = Counter((row["trial_id"], row["trial_idx"]) for row in rows)
    twice = [key for key, n in counts.items() if n > 1]
    return bool(rows) and not twice, f"(trial_id, trial_idx): {len(rows)} rows, {len(twice)} of them twice"


def _drawn(values: Values) -> list[Any]:
    trials: list[Any] = read_json(Path(values["out_base_dir"], "artifacts", "sampled_trials.json"))["trials"]
    return trials


@_criterion
def all_trials_drawn(values: Values) -> Told:
    asked, found = values["relation_n_trials_per_q"], len(_drawn(values))
    return str(found) == asked, f"{found} trials, {asked} asked for"


@_criterion
def no_query_among_its_demonstrations(values: Values) -> Told:
    trials = _drawn(values)
    shown = [one for one in trials if one["query_source_index"] in one["demo_source_indices"]]
    return not shown, f"no query among its demonstrations in {len(trials) - len(shown)} of {len(trials)} trials"


@_criterion
def as_many_heads_as_asked(values: Values) -> Told:
    from fvcore.experiments.plan_files import heads_in

    path = Path(values["stepd_artifacts_dir"], "top_heads.json")
    found = len(heads_in(read_json(path), path))
    return "k" not in values or str(found) == values["k"], f"{found} heads in the vector"


@_criterion
def layers_so_far(values: Values) -> Told:
    """Every layer is there once the caller's loop has ended; until then this layer must be."""
    done = read_json(Path(values["out_dir"]).parent / "step6_all_layers_summary.json")
    completed, expected = done["completed_layers"], done["expected_layers"]
    missing = f"; missing {', '.join(map(str, done['missing_layers']))}" if done["missing_layers"] else ": all of them"
    return int(values["edit_layer"]) in completed, f"{len(completed)} of {len(expected)} layers{missing}"


def deliver(values: Values) -> None:
    """The reduced run's report under the names and in the place that the plan gives."""
    report = _report("results_fv/reduced", values)
    write_report(report, _suite(values, ""))
