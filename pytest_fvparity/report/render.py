"""Renders a report: JSON, Markdown, HTML, CSV and log, all from the one value, all written atomically."""

from __future__ import annotations

import glob
import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore import maps, page
from fvcore.formats import FormatError, csv_text, json_text, read_json, validated, write_text
from fvcore.profile import Processor
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report import story
from pytest_fvparity.report.account import account
from pytest_fvparity.report.error_grid import grids
from pytest_fvparity.report.markdown import STEP_SUMMARY, within
from pytest_fvparity.report.report import (
    AGREEING,
    SCHEMA_VERSION,
    UNKNOWN,
    Report,
    concluded,
    earliest_failure,
    is_partial,
    largest_of,
    weaker,
    worst_first,
)

if TYPE_CHECKING:
    from jinja2 import Environment

    from pytest_fvparity.report.history import Comparison

REPORT, COMPARISON = "src_vs_fv_diff_report", "src_vs_fv_comparison"
MOST_TRIALS = 30  # rows of a page; all are in a file
STAGE_COLUMNS = ("name", "status", "exit_code", "mismatch_count", "max_abs_diff", "duration_sec", "cmd")
WAYS = {"base": "clean", "with": "with", "delta": "delta"}
"""Our words for a trial's three log-probabilities, and the plans': `clean` is the run without the vector."""
LOGITS = "logits_max_abs_diff"
TRIAL = ("trial_id", "trial_idx", "target_id")
TRIAL_COLUMNS = (
    *TRIAL,
    *(f"{way}_{side}_logprob" for way in WAYS.values() for side in ("src", "fv")),
    *(f"{way}_equal" for way in WAYS.values()),
    "trial_match",
    *(f"{WAYS[name]}_{LOGITS}" for name in ("base", "with")),
)

FILES = (
    "parity_suite_report.json",
    "parity_suite_stages.csv",
    "parity_suite.log",
    "injection_parity_trials.csv",
    "injection_parity_report.json",
    f"{REPORT}.json",
    f"{REPORT}.md",
    f"{REPORT}.html",
    f"{COMPARISON}.json",
)
"""All that a report may be written in."""

Comparisons = Mapping[tuple[str, ...], "Comparison"]
"""What a report is named by -> the report beside an earlier one."""


def write_all(reports: Sequence[Report], report_dir: Path, comparisons: Comparisons | None = None) -> None:
    """Every report into `<report dir>/<dataset>/<fixed_trials_id>[/<profile>]/`, and a summary above them.

    All texts are rendered before the first file is written: no file says PASS beside one that says FAIL.
    """
    files: dict[Path, str | None] = {
        folder / name: text
        for report in reports
        for name, text in _files(report, (comparisons or {}).get(report.named)).items()
        for folder in folders(report, report_dir)
    }
    _put(files | {report_dir / name: text for name, text in summaries(reports).items()})


def write_records(reports: Iterable[Report], report_dir: Path) -> None:
    """Of each report the one file that all others can be rendered from (`fvparity render`): what is known so far.

    A run that goes on to its end writes all of them; one that is killed leaves these.
    """
    for report in reports:
        for folder in folders(report, report_dir):
            write_text(folder / f"{REPORT}.json", json_text(report.model_dump(mode="json")))


def summaries(reports: Sequence[Report]) -> dict[str, str]:
    """File name -> text of what stands above all reports."""
    ordered = worst_first(reports)
    worst = ordered[0].overall_status if ordered else "PASS"
    names = ("dataset", "fixed_trials_id", "model", "overall_status", "headline", "repro_command")
    runs = [
        {name: getattr(report, name) for name in names}
        | {"statuses": {key: check.status for key, check in report.by_key.items()}}
        | {"report": "/".join([*report.named, f"{REPORT}.html"])}
        for report in ordered
    ]
    summary = {"overall_status": worst, "runs": runs}
    texts = {kind: environment().get_template(f"summary.{kind}.j2").render(summary) for kind in ("md", "html")}
    texts["md"] = within(texts["md"], STEP_SUMMARY, "All runs are in `summary.html`.")
    return {"summary.json": json_text(summary), **{f"summary.{kind}": text for kind, text in texts.items()}}


def folders(report: Report, report_dir: Path) -> list[Path]:
    """`<report dir>/<dataset>/<fixed_trials_id>`, and below it a folder of the reference's profile where it is not `src`.

    Trials that cannot be read do not tell their dataset: then every earlier report of that name is replaced, so that
    none is left to say PASS.
    """
    own = [report_dir.joinpath(*report.named)]
    if report.dataset != UNKNOWN:
        return own
    place = "/".join(["*", *map(glob.escape, report.named[1:])])
    return sorted(path for path in report_dir.glob(place) if path.is_dir()) or own


def files_of(reports: Sequence[Report], report_dir: Path) -> list[Path]:
    """Every file that `write_all` may have written of these trials before, and its summary."""
    there = {folder for one in reports for folder in folders(one, report_dir)}
    named = [folder / name for folder in sorted(there) for name in FILES]
    return named + [report_dir / f"summary.{kind}" for kind in ("json", "md", "html")]


def read_report(path: Path) -> Report:
    """What `write_report` wrote: everything else can be rendered from it again, byte for byte.

    The file is believed about its checks and not about their conclusion, which is drawn anew.
    """
    value = read_json(path)
    if isinstance(value, dict) and value.get("schema_version", SCHEMA_VERSION) != SCHEMA_VERSION:
        raise FormatError(f"{path}: a report of schema version {value['schema_version']}, not {SCHEMA_VERSION}")
    return concluded(validated(Report, value, path, "a parity report"))


def read_all(paths: Sequence[Path]) -> dict[Path, Report]:
    """The reports in files as given, once each; of a folder, every report under it."""
    found: dict[Path, None] = {}
    for path in paths:
        inside = sorted(path.rglob(f"{REPORT}.json")) if path.is_dir() else [path]
        if not inside:
            raise FormatError(f"{path}: no {REPORT}.json under this folder")
        found |= dict.fromkeys(inside)
    return {path: read_report(path) for path in found}


def write_report(report: Report, folder: Path, comparison: Comparison | None = None) -> list[Path]:
    return _put({folder / name: text for name, text in _files(report, comparison).items()})


def _put(files: Mapping[Path, str | None]) -> list[Path]:
    """What must not be there goes first: no file is left that speaks of another report than its neighbours."""
    for path in (path for path, text in files.items() if text is None):
        path.unlink(missing_ok=True)
    written = {path: text for path, text in files.items() if text is not None}
    for path, text in written.items():
        write_text(path, text)
    return list(written)


def _files(report: Report, comparison: Comparison | None) -> dict[str, str | None]:
    """File name -> text, None for a file that must not be there. A report from elsewhere may fit its schema and still lack what the templates show."""
    from jinja2 import TemplateRuntimeError

    try:
        return _rendered(report, comparison)
    except (KeyError, TypeError, ValueError, TemplateRuntimeError) as error:
        trials = "/".join(report.named)
        raise FormatError(f"the report of {trials} cannot be rendered ({type(error).__name__}: {error})") from error


def _rendered(report: Report, comparison: Comparison | None) -> dict[str, str | None]:
    value, templates = report.model_dump(mode="json"), environment()
    shown = _shown(report)
    stages = [
        {"name": check.key, "status": check.status, "cmd": check.repro_command}
        | {"exit_code": 0 if check.status in AGREEING or is_partial(check) else 1}
        | {name: getattr(check, name) for name in ("mismatch_count", "max_abs_diff", "duration_sec")}
        for check in report.checks
    ]
    rows = [row | {"duration_sec": f"{row['duration_sec']:.6f}"} for row in stages]
    trials = [_trial_row(row) for row in report.trials]
    html = templates.get_template("report.html.j2")
    return {
        "parity_suite_report.json": json_text(_suite_report(report, stages)),
        "parity_suite_stages.csv": csv_text(STAGE_COLUMNS, rows),
        "parity_suite.log": templates.get_template("suite.log.j2").render(shown),
        "injection_parity_trials.csv": csv_text(TRIAL_COLUMNS, trials),
        "injection_parity_report.json": json_text(_injection_report(report, trials)),
        f"{REPORT}.json": json_text(value),
        f"{REPORT}.md": markdown(report, STEP_SUMMARY, comparison),
        f"{REPORT}.html": html.render(shown, comparison=comparison),
        f"{COMPARISON}.json": json_text(comparison.model_dump(mode="json")) if comparison else None,
    }


def markdown(report: Report, budget: int, comparison: Comparison | None = None) -> str:
    """The report in at most so many bytes: verdict and earliest divergence first, failing keys before passing ones."""
    template = environment().get_template("report.md.j2")
    text = template.render(_shown(report), comparison=comparison)
    return within(text, budget, f"All of it is in `{REPORT}.html`.")


def _shown(report: Report) -> dict[str, Any]:
    """A report's fields, and what a page says beside them: the earliest failure, the other keys that say something, notes."""
    value = report.model_dump(mode="json")
    failed = earliest_failure(report.checks)
    saying = [check for check in report.checks if (check.details or check.message) and check is not failed]
    return value | {
        "beside": report.beside,
        "replay_command": report.replay_command,
        "keys": CHECK_KEYS,
        "by_key": {check["key"]: check for check in value["checks"]},
        "failed": account(failed) if failed else None,
        "source": getattr(failed, "source", None),
        "wrong": {check.key: story.n_wrong(check) for check in report.checks},
        "weaker": weaker(report),
        "deeper": list(story.deeper(report, failed)) if failed else [],
        "others": [account(check) for check in saying],
        "notes": [(c.key, row) for c in report.checks for row in c.warnings if not story.is_drill(row)],
    }


@cache
def environment() -> Environment:
    """Templates of this package on the base of all pages. One a process, so that they are compiled once."""
    templates = page.environment("pytest_fvparity.report")
    templates.filters |= {"number": _number, "share": _share}
    templates.filters |= {"grids": grids, "ran_on": _ran_on}
    templates.filters |= {"times": story.times, "worst_trials": _worst_trials, "beside": _beside}
    templates.filters["cells"] = partial(maps.cells, number=_number)
    templates.filters["used"] = lambda tolerances: largest_of(row["used"] for row in tolerances)
    # A word is no finite number, and no tolerance allows that.
    templates.filters["over"] = lambda share: isinstance(share, str) or (share is not None and share > 1)
    templates.globals["largest_effect"] = largest_effect
    return templates


def _number(value: Any) -> str:
    """A number as a reader wants it: short, and a dash for none."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _share(value: float | str | None) -> str:
    """How much of a tolerance was used; what is far beyond it is so many times as much."""
    if not isinstance(value, float | int):
        return _number(value)
    return f"{100 * value:.3g} %" if value < 10 else f"{value:,.0f} times" if value < 1e6 else f"{value:.2g} times"


def _worst_trials(trials: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """All of a few, of many those whose logits differ most."""

    def size(row: Mapping[str, Any]) -> float:
        off = row[f"with_{LOGITS}"]
        return math.inf if isinstance(off, str) else off or 0.0

    return trials if len(trials) <= MOST_TRIALS else sorted(trials, key=size, reverse=True)[:MOST_TRIALS]


def _beside(both: tuple[Any, Any], differ: bool) -> tuple[str, str]:
    """Two numbers beside each other; of such as are said to differ enough digits to see it."""
    return story.pair(*both) if differ else (_number(both[0]), _number(both[1]))


def _ran_on(conditions: Mapping[str, Any]) -> str:
    flat = {k: v for k, v in conditions.items() if k not in {"versions", "processor"}} | conditions.get("versions", {})
    flat |= {"processor": Processor(**conditions["processor"])} if conditions.get("processor") else {}
    return ", ".join(f"{name} {value}" for name, value in flat.items()) or "–"


def _names(report: Report) -> dict[str, Any]:
    return {"dataset_name": report.dataset, "fixed_trials_id": report.fixed_trials_id, "model_name": report.model}


def _suite_report(report: Report, stages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    failed = earliest_failure(report.checks)
    files = {"log": "parity_suite.log", "csv": "parity_suite_stages.csv", "report": "parity_suite_report.json"}
    return {
        "status": report.overall_status,
        **_names(report),
        "seed": report.of_profile("identity").get("seed"),
        "earliest_failed_stage": failed.key if failed else None,
        "stages": list(stages),
        "paths": files,
        "first_divergence": report.model_dump(mode="json")["first_divergence"],
        "reproduce": report.repro_command,
    }


def _trial_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """One trial in the plans' words."""
    cells: dict[str, Any] = {name: row[name] for name in TRIAL}
    for name, way in WAYS.items():
        src, fv = row[f"{name}_logprob_src"], row[f"{name}_logprob_fv"]
        cells |= {f"{way}_src_logprob": src, f"{way}_fv_logprob": fv, f"{way}_equal": src == fv}
    cells["trial_match"] = int(all(cells[f"{way}_equal"] for way in WAYS.values()))
    return cells | {f"{WAYS[name]}_{LOGITS}": row[f"{name}_{LOGITS}"] for name in ("base", "with")}


def _injection_report(report: Report, trials: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    identity, check = report.of_profile("identity"), report.by_key.get("injection_output")
    heads, scores = report.heads.get("heads_actual") or [], report.heads.get("scores_actual") or []
    return {
        **_names(report),
        "device": report.of_profile("conditions").get("device"),
        "seed": identity.get("seed"),
        "status": check.status if check else "not selected",
        "checked_trials": len(trials),
        **{name: identity.get(name) for name in ("edit_layer", "n_top_heads", "token_class_idx")},
        "top_heads": [[*head, score] for head, score in zip(heads, scores, strict=False)],
        "mismatch_count": check.mismatch_count if check else None,
        **{
            f"max_abs_diff_{way}_logits": largest_of(row[f"{way}_{LOGITS}"] for row in trials)
            for way in ("clean", "with")
        },
        "trials_csv": "injection_parity_trials.csv",
    }


def largest_effect(*maps: Sequence[Sequence[float | str]]) -> float:
    """The largest finite magnitude, 0.0 if there is none: one colour scale for all maps (layer, head) of a report."""
    return max((abs(v) for aie in maps for row in aie for v in row if isinstance(v, float)), default=0.0)
