"""`fvcore antonym ...`, `fvcore runtime ...`: the production steps, all in order or one by one in a run's folder."""

from fvcore import exits, terminal
from fvcore.experiments.antonym.config import AntonymConfig
from fvcore.experiments.config import experiment
from fvcore.experiments.steps.settings import STEP_COMMANDS, chosen_steps


def run(config: AntonymConfig) -> None:
    """The steps in order; what is done already is not run again."""
    steps = chosen_steps(config.steps, config.pictures)
    if steps == ["heatmap"]:
        from fvcore.experiments.steps import heatmap

        for path in heatmap.alone(config.folder, config.score_key, config.top_heads, config.out_name or "all"):
            exits.note(f"wrote {path}")
        return
    from fvcore.experiments.antonym import report
    from fvcore.experiments.progress import Shown
    from fvcore.experiments.steps.run import run as run_steps

    if config.trials is not None and (config.n_trials or config.n_shots):
        exits.tell("--trials sets n_trials and n_shots; --n-trials and --n-shots are not used")
    source, folder = config.source, config.folder
    run_steps(config.load(config.seed), folder, config, source, steps, Shown(terminal.console()))
    exits.tell(f"{', '.join(steps)} done in {folder}")
    if finding := report.finding(folder):
        exits.tell(finding)
    if config.pictures and (written := report.write(folder)):
        exits.note(f"the page is {written}")


app = experiment(
    AntonymConfig, run, "The production steps: StepD, heat map, StepE, zero-shot snapshot, Step6.", STEP_COMMANDS
)
