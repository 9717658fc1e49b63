"""`fvcore ...`: every sub-command builds its settings and calls the library."""

from pathlib import Path
from typing import Annotated

import typer

from fvcore import terminal
from fvcore.experiments.antonym.cli import app as antonym_app
from fvcore.experiments.config import add_command
from fvcore.experiments.evaluation.cli import evaluate
from fvcore.experiments.evaluation.config import EvaluationConfig
from fvcore.experiments.relation.cli import app as relation_app
from fvcore.experiments.sae.cli import app as pathways_app
from fvcore.experiments.select_kv.cli import register as add_select_kv
from fvcore.experiments.select_kv.cli import show_faults
from fvcore.fast.commands import app as spec_app
from fvcore.profile import MOST_SEED

app = terminal.program("fvcore", "Function vectors: data and experiments.")
trials_app = typer.Typer(no_args_is_help=True, help="Fixed trials: make a file, verify a file.")
COMMANDS = {
    "trials": trials_app,
    "spec": spec_app,
    "antonym": antonym_app,
    "runtime": antonym_app,
    "relation": relation_app,
    "pathways": pathways_app,
}
"""Groups of commands; `runtime` is the plans' name of the antonym experiment."""

for _name, _group in COMMANDS.items():
    app.add_typer(_group, name=_name, hidden=_name == "runtime")
add_command(app, "eval", EvaluationConfig, evaluate)
add_select_kv(app)
app.command("select-kv-faults")(show_faults)

DATASET = ("--dataset", "--dataset-json")


WithoutEmpty = Annotated[
    bool, typer.Option("--without-empty-rows", help="Leave out rows of the raw dataset without input or answer.")
]


@trials_app.command("make")
def trials_make(
    dataset_json: Annotated[Path, typer.Option(*DATASET, help="Raw dataset: a JSON list of {input, output} rows.")],
    tokenizer: Annotated[str, typer.Option(help="Shipped model, directory or cached hub id.")],
    out: Annotated[Path | None, typer.Option(help="File, or folder (default: datasets/fixed_trials/).")] = None,
    n_trials: Annotated[int, typer.Option(min=1)] = 10,
    n_shots: Annotated[int, typer.Option(min=0)] = 10,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 0,
    prepend_bos: Annotated[
        bool | None,
        typer.Option("--prepend-bos/--no-prepend-bos", help="The tokenizer adds a BOS (default: measured)."),
    ] = None,
    prepend_bos_token_used: Annotated[
        bool,
        typer.Option(
            "--prepend-bos-token-used/--no-prepend-bos-token-used",
            help="A BOS string is part of the prompt text. Only false is accepted, and the error says why.",
        ),
    ] = False,
    without_empty_rows: WithoutEmpty = False,
) -> None:
    """Sample trials and write them, with the draws and the bytes of the format."""
    from fvcore import prompts
    from fvcore.model.model import load_tokenizer
    from fvcore.model.tokenizer import BosFacts
    from fvcore.trials import fixed as trials

    if prepend_bos_token_used:
        raise trials.TrialsError(
            "--prepend-bos-token-used: a BOS string in the prompt text is labelled in the real prompt and not in the "
            "one-token-per-word prompt, which shifts every slot. Let the tokenizer add it, or use the reference "
            "profile todd_upstream, which writes it in both."
        )
    pairs, loaded = trials.read_pairs(dataset_json, without_empty_rows), load_tokenizer(tokenizer)
    meta = trials.Meta(
        dataset_json=trials.portable(trials.raw_file(dataset_json)),
        seed=seed,
        n_trials=n_trials,
        n_shots=n_shots,
        model_name_for_tokenizer=trials.portable(tokenizer),
        model_prepend_bos=BosFacts.of(loaded).adds_bos if prepend_bos is None else prepend_bos,
    )
    file = prompts.sample_trials(loaded, pairs, meta)
    folder = Path("datasets", "fixed_trials") if out is None else out
    path = folder if folder.suffix == ".json" else folder / trials.file_name(meta)
    trials.write(path, file)
    terminal.note(f"wrote {path}: {n_trials} trials of {n_shots} shots from {len(pairs)} rows, seed {seed}")


@trials_app.command("verify")
def trials_verify(
    file: Annotated[Path, typer.Argument(help="Fixed-trials file.")],
    first: Annotated[int | None, typer.Option(min=1, help="Check the first N trials only.")] = None,
    tokenizer: Annotated[str | None, typer.Option(help="Default: the one the file names.")] = None,
    dataset_json: Annotated[
        Path | None,
        typer.Option(*DATASET, help="Raw dataset to sample again (default: the one the file names, if there)."),
    ] = None,
    without_empty_rows: WithoutEmpty = False,
) -> None:
    """Check a trials file: format, prompts, boundary, target and slots under its tokenizer, and its draws from the raw data."""
    from fvcore import prompts, slots
    from fvcore.model.model import ModelError, load_tokenizer
    from fvcore.trials import fixed as trials

    fixed = trials.read(file)
    n = len(fixed.trials)
    if first is not None and first > n:
        raise trials.TrialsError(f"{file}: --first {first}, but the file holds {n} trials")
    name = tokenizer or fixed.meta.model_name_for_tokenizer
    try:
        loaded = load_tokenizer(name)
    except ModelError as error:
        raise (
            ModelError(f"{file}: {error}. Name its tokenizer: --tokenizer DIR") if tokenizer is None else error
        ) from None
    problems = prompts.verify(fixed, loaded, first) or slots.verify(fixed, loaded, first)
    raw = trials.raw_file(dataset_json or fixed.meta.dataset_json)
    sampled = "not sampled again (the raw dataset is not at hand; --dataset)"
    if dataset_json is not None or raw.is_file():
        problems += trials.same_draws(fixed.file, trials.read_pairs(raw, without_empty_rows), first)
        sampled = f"sampled again from {raw}"
    for problem in problems:
        terminal.tell(problem)
    terminal.tell(f"{file}: {first or n} of {n} trials checked with {name}, {sampled}; mismatch_count {len(problems)}")
    if problems:
        raise typer.Exit(terminal.FAILED)


def main() -> None:
    """The console script: an expected error is one line and its exit status, not a traceback."""
    terminal.run("fvcore", app)


if __name__ == "__main__":
    main()
