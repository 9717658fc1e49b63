"""M0: fixed trials that are what they say, and prompts and slots that are the reference's."""

from fvcore import slots
from fvcore.formats import write_text
from fvcore.model import model as models
from fvcore.prompts import verify
from fvcore.provenance import now
from fvcore.trials import fixed as trials
from pytest_fvparity.milestones.setup import Failed, MilestoneOutcome, Setup
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.report.report import Check, Report

WORDS = CHECK_KEYS[:2]


def run(setup: Setup) -> MilestoneOutcome:
    """Verify the file, then compare prompts and slots; `first_token_id == answer_ids[0]` is part of the first."""
    problems = _problems(setup)
    folder = setup.layout.runs / "m0"
    # A golden where there is one, else the reference itself, which needs no pass of its model for words.
    has_golden = setup.find_golden() is not None
    options = setup.comparing(len(setup.fixed.trials)) if has_golden else ["--fv-live", *setup.recording()]
    report = setup.parity(folder, options, WORDS)
    checks, log = report.by_key, setup.layout.runs / "m0_prompt_slot_parity.log"
    write_text(log, _log(setup, problems, report))
    agree = all(key in checks and checks[key].status == "PASS" for key in WORDS)
    counts = ", ".join(f"{key} mismatch_count {_count(checks.get(key))}" for key in WORDS)
    message = f"{len(setup.fixed.trials)} trials verified, mismatch_count {len(problems)}; {counts}"
    own = [setup.trials_file] if setup.trials_file.is_relative_to(setup.root) else []  # it lies among the deliverables
    return MilestoneOutcome(agree and not problems, message, [log, *own])


def _problems(setup: Setup) -> list[str]:
    fixed = setup.fixed
    tokenizer = models.load_tokenizer(setup.model)
    found = verify(fixed, tokenizer) or slots.verify(fixed, tokenizer)
    found += [
        f"trial {record.trial_id}: first_token_id {record.first_token_id} is not answer_ids[0] of {record.answer_ids}"
        for record in fixed.file.trials
        if record.answer_ids and record.first_token_id != record.answer_ids[0]
    ]
    try:
        found += trials.same_draws(fixed.file, trials.read_pairs(setup.raw_dataset()), None)
    except Failed as failure:
        found.append(f"the draws were not checked: {failure}")
    return found


def _log(setup: Setup, problems: list[str], report: Report) -> str:
    lines = [
        f"{now()} M0 {setup.trials_file}",
        f"reference: {report.golden_path or 'live'}",
        f"verify: mismatch_count {len(problems)}",
        *(f"  {problem}" for problem in problems),
    ]
    for check in report.checks:
        lines.append(f"{check.key}: {check.status}, mismatch_count {_count(check)}, compared {check.n_compared}")
        lines += [f"  {check.message}"] if check.message else []
        lines += [f"  {row.where}: {row.message}" for row in check.details]
    return "\n".join(lines) + "\n"


def _count(check: Check | None) -> int | str:
    return "not judged" if check is None or check.mismatch_count is None else check.mismatch_count
