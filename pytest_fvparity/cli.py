"""`fvparity ...`: plant the faults, merge reports, render them again. Verdicts are pytest's; these commands read them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fvcore import exits, names, terminal
from fvcore.escapes import lines
from fvcore.formats import read_json, write_text
from fvcore.gates import StageError
from fvcore.model.spec import ModelError
from pytest_fvparity.bundle.commands import replay
from pytest_fvparity.children import following
from pytest_fvparity.golden import commands as golden_cli
from pytest_fvparity.golden.commands import say
from pytest_fvparity.milestones import cli as milestones_cli
from pytest_fvparity.report.comparing import compare
from pytest_fvparity.report.markdown import LEAST

if TYPE_CHECKING:
    from pytest_fvparity.report.render import Comparisons
    from pytest_fvparity.report.report import Report
    from pytest_fvparity.selftest.catalogue import Fault
    from pytest_fvparity.selftest.run import Row

app = terminal.program("fvparity", "The parity harness: its self-test and its reports.")
app.add_typer(golden_cli.app, name="golden")
app.command()(milestones_cli.milestone)
app.command()(replay)
app.command()(compare)
spec_app = typer.Typer(no_args_is_help=True, help="A model beside the reference: reduced parity.")
app.add_typer(spec_app, name="spec")

errors = Console(stderr=True, highlight=False)

Reports = Annotated[list[Path], typer.Argument(help="Report JSON files, or folders that hold some.")]

COLOURS = {"caught": "green", "wrong key": "red", "missed": "red", "not run here": "yellow"}


class Unusable(Exception):
    """The arguments do not fit together; the message names the way out."""


@app.command()
def selftest(
    ids: Annotated[list[str] | None, typer.Argument(help="Faults by id (default: all).")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table there, as Markdown.")] = None,
    as_json: terminal.Json = False,
) -> None:
    """Plant every fault of the catalogue and check that the harness finds it at its key. Status 1 if it does not."""
    from pytest_fvparity.selftest import run

    known = run.catalogue()
    if unknown := [id for id in ids or () if id not in known]:
        raise Unusable(f"no fault {', '.join(unknown)} in the catalogue; known: {', '.join(known)}")
    asked: list[str] = list(dict.fromkeys(ids or known))
    rows: list[Row] = []
    progress = terminal.console(stderr=True)

    def begin(fault: Fault) -> None:
        progress.print(f"[{len(rows) + 1}/{len(asked)}] {fault.id}: ", end="", markup=False)

    for row in run.rows(asked, begin):
        rows.append(row)
        progress.print(row.verdict, style=COLOURS[row.verdict])
    terminal.show([_told(row) for row in rows], as_json)
    if not as_json:
        say(run.counted(rows))
    if markdown:
        write_text(markdown, run.faults_markdown(rows, known))
    if run.red(rows):
        raise typer.Exit(exits.FAILED)


def _told(row: Row) -> dict[str, str]:
    fault = row.fault
    return {
        "id": fault.id,
        "hazard": fault.hazard,
        "expected": fault.expected,
        "seen": row.seen_words,
        "verdict": row.verdict,
    }


@app.command()
def init(
    folder: Annotated[
        Path | None, typer.Argument(help="Folder that the plans' scripts, modules and data go to.")
    ] = None,
    plan: Annotated[list[str] | None, typer.Option(help="antonym, model-spec or relation (default: all).")] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Print what each of the plans' flags is here, and end.")
    ] = False,
) -> None:
    """Write the plans' scripts under the plans' names, so that the plans' command lines run there. Nothing is overwritten."""
    from pytest_fvparity.plans import page
    from pytest_fvparity.plans.init import PLANS, init

    if table:
        say(page.scripts_markdown())
        return
    if folder is None:
        raise Unusable("init: which folder? fvparity init DIR, or fvparity init --table")
    if unknown := [one for one in plan or () if one not in PLANS]:
        raise Unusable(f"--plan {unknown[0]}: expected {', '.join(PLANS)}")
    files = init(folder, plan or PLANS)
    say(f"{len(files)} files in {folder}; the plans' commands stand in {folder / 'README.md'}")


@app.command()
def merge(reports: Reports, out: Annotated[Path, typer.Option(help="Folder for the merged reports.")]) -> None:
    """Make one set of reports of several: shards by -k, by machine or by trials. Status 1 if a merged one is red, or a key of it
    was judged by no shard."""
    from pytest_fvparity.report.merge import merge as merged_of
    from pytest_fvparity.report.merge import unjudged
    from pytest_fvparity.report.render import read_all, write_all

    found = read_all(reports)
    merged = merged_of([(str(path), report) for path, report in found.items()])
    write_all(merged, out)
    say(*(f"{'/'.join(report.named)}: {report.headline}" for report in merged))
    lacking = {"/".join(report.named): unjudged(report) for report in merged}
    say(*(f"{name}: no report judges {', '.join(keys)}" for name, keys in lacking.items() if keys))
    say(f"{len(found)} report(s) merged into {len(merged)}: {out / 'summary.html'}")
    if any(lacking.values()) or any(report.overall_status == "FAIL" for report in merged):
        raise typer.Exit(exits.FAILED)


@app.command()
def render(
    reports: Reports,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for all reports and their summary, laid out as a run does (default: each in place)."),
    ] = None,
    against: Annotated[
        Path | None, typer.Option(help="Earlier report of the same trials, or a folder of some.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(min=LEAST, help="Print Markdown of at most so many bytes instead (a comment on GitHub: 65536)."),
    ] = None,
    annotations: Annotated[bool, typer.Option("--annotations", help="Print GitHub annotations instead.")] = False,
) -> None:
    """Write all files of reports again, from their JSON alone; or print one rendering for GitHub."""
    from pytest_fvparity.report import render as rendering

    if (budget is not None) + annotations + (out is not None) > 1:
        raise Unusable("--out, --budget and --annotations exclude one another: the last two print and write no file")
    found = rendering.read_all(reports)
    every = list(found.values())
    comparisons = _comparisons(every, against) if against else {}
    if annotations:
        _annotate(every)
    elif budget is not None:
        if len(every) > 1:
            raise Unusable(f"--budget prints one report, and {len(every)} were given")
        if not _summarised(every[0]):
            text = rendering.markdown(every[0], budget, comparisons.get(every[0].named))
            typer.echo(text.encode("utf-8", errors="backslashreplace"), nl=False)
    elif out:
        _require_distinct("/".join([str(out), *report.named]) for report in every)
        rendering.write_all(every, out, comparisons)
    else:
        _require_distinct(str(path.parent) for path in found)
        for path, report in found.items():
            rendering.write_report(report, path.parent, comparisons.get(report.named))


def _annotate(reports: Sequence[Report]) -> None:
    """The workflow commands of what the run itself has not told this job's runner."""
    from pytest_fvparity import runners
    from pytest_fvparity.report.annotations import annotations

    every = annotations(reports, Path.cwd())
    fresh = [one for one in every if not runners.is_told(one.said)]
    if len(fresh) < len(every):
        errors.print(f"{len(every) - len(fresh)} annotation(s) that the run has made itself are left out")
    typer.echo("".join(f"{line}\n" for line in runners.workflow_commands(fresh)), nl=False)


def _summarised(report: Report) -> bool:
    """Whether what is printed goes to a step summary of the job in which the run wrote it there itself."""
    from pytest_fvparity import runners
    from pytest_fvparity.report.step_summary import identity

    if found := runners.prints_to_summary() and runners.is_told(identity(report)):
        errors.print("nothing is printed: the run has written the step summary itself")
    return found


def _require_distinct(places: Iterable[str]) -> None:
    """Two reports must not be written over one another."""
    known = list(places)
    if twice := next((place for place in known if known.count(place) > 1), None):
        raise Unusable(f"two reports would be written to {twice}; make one of them with `fvparity merge`, or name one")


def _comparisons(reports: Sequence[Report], against: Path) -> Comparisons:
    from pytest_fvparity.report.history import compared
    from pytest_fvparity.report.render import read_all

    sides = [{report.named: report for report in side} for side in (reports, read_all([against]).values())]
    now, earlier = sides
    common = {name: compared(report, earlier[name]) for name, report in now.items() if name in earlier}
    if not common:
        names = " and ".join(", ".join(map("/".join, side)) for side in sides)
        raise Unusable(f"--against {against}: no report of the same trials ({names})")
    return common


ANTONYMS = Path("datasets/antonym/raw/antonym.json")
NO_VERDICT = {"ERROR", "CRASHED", "REFUSED", "NOT_RUN"}


@spec_app.command("parity")
def spec_parity(
    model: Annotated[str, typer.Argument(help="Shipped model, directory or cached hub id.")],
    fv_src: Annotated[Path, typer.Option(help="Checkout of the public reference.")],
    trials: Annotated[
        Path | None, typer.Option(help="Fixed trials (default: the shipped model's, or one made now).")
    ] = None,
    dataset_json: Annotated[
        Path | None,
        typer.Option(help=f"Raw dataset of trials that are made now (default: {ANTONYMS}, as it ships)."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the reports.")] = Path("reports/spec_parity"),
    spec: Annotated[str | None, typer.Option(help="Registered name, alias or YAML file (default: found).")] = None,
) -> None:
    """Reduced parity: one trial, five heads, the middle layer, seed 42, against a run of the reference made now.

    Success is that all of it ran and was written, whatever the numbers say.
    """
    from fvcore import embedded
    from fvcore.model import model as models
    from pytest_fvparity.report.render import REPORT

    folder = out / _place_of(model)  # its own: reports of other models and runs may lie beside it
    if trials is None and model not in embedded.EMBEDDED:
        trials = _one_trial(model, dataset_json or ANTONYMS, folder)
    reports_in = folder / "reduced"
    options = {"model": model, "src": fv_src, "max-trials": 1, "top-heads": 5, "seed": 42, "report-dir": reports_in}
    options |= {"edit-layer": models.n_layers_on_disk(model) // 2, "trials": trials, "spec": spec}
    words = (f"--fv-{name}={value}" for name, value in options.items() if value is not None)
    for earlier in reports_in.rglob(f"{REPORT}.json"):
        earlier.unlink()
    status = _run("pytest", "-m", "parity", "-x", "--fv-live", *words)
    reports = [read_json(path) for path in reports_in.rglob(f"{REPORT}.json")]
    stuck = [check for report in reports for check in report["checks"] if check["status"] in NO_VERDICT]
    # 0 and 1 are verdicts about numbers; anything else is a run that did not come to its end.
    if status not in (0, 1) or not reports or stuck:
        reason = f"{stuck[0]['key']}: {stuck[0]['message']}" if stuck else f"pytest's exit status {status}"
        raise ModelError(f"the reduced parity run did not come to a verdict ({reason}; see above)")
    say(reports[0]["headline"], f"reduced parity ran to its end; its files are under {reports_in}")


def _place_of(model: str) -> str:
    """A folder's name that no other model has: two directories of one name are two models."""
    from fvcore.trials.fixed import model_tag

    own = names.word_of_directory(model)
    return "_".join(filter(None, (model_tag(str(Path(model).expanduser().resolve()) if own else model), own)))


def _one_trial(model: str, dataset_json: Path, out: Path) -> Path:
    path = out / "fixed_trials_reduced_t1_s10_seed42.json"
    options = {"dataset-json": dataset_json, "tokenizer": model, "n-trials": 1, "seed": 42, "out": path}
    if _run("fvcore", "trials", "make", *(f"--{name}={value}" for name, value in options.items())):
        raise ModelError(
            f"no trial could be made of {dataset_json} with the tokenizer of {model!r}, see above; give --trials"
        )
    return path


def _run(*words: str) -> int:
    """The exit status of a module of this interpreter, whose output goes where this process's does."""
    return subprocess.run(following([sys.executable, "-m", *words]), check=False).returncode


def main() -> None:
    """The console script: an expected error is one message and exit status 2, not a traceback."""
    from pytest_fvparity.report.merge import Contradiction

    def told(error: str) -> None:
        errors.print(lines(f"fvparity: {error}"), style="red", soft_wrap=True, markup=False)

    def asked() -> None:
        try:
            app()
        except (StageError, Contradiction, Unusable) as error:
            raise exits.Expected(str(error)) from None

    exits.run("fvparity", asked, told)


if __name__ == "__main__":
    main()
