"""`run --example`: the shipped model, autoencoders trained on it here, and logs of what it answers with single features set.

Nothing of it is made up, and nothing comes from the network. Some features of layer 0 and 1 tell which relation the
demonstrations have, and the logs show which of them change the answers.
"""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.experiments.config import ConfigError, resolve
from fvcore.experiments.errors import StepError
from fvcore.experiments.folder import Folder, locked
from fvcore.experiments.record import Record, Stage
from fvcore.experiments.sae.config import PathwaysConfig, Training
from fvcore.experiments.sae.generate import CHECKPOINTS, LOGS
from fvcore.formats import write_text

if TYPE_CHECKING:
    from fvcore.experiments.progress import Progressing
    from fvcore.experiments.sae.logged import Asked
    from fvcore.fast.chunks import Advance

SETTINGS = Path(__file__).parent / "configs" / "example.yaml"
RECORD, CONFIG = "example_record.json", "config.yaml"
OUT = Path("reports/pathways-example")
OWN = {"paths", "runtime"}
"""Groups of settings that the example leaves to the user."""


def prepare(given: PathwaysConfig, progress: Progressing | None = None) -> PathwaysConfig:
    """Train the autoencoders, ask the model, and write a config for both in the run's folder; what is there is kept.

    Raises ConfigError where settings are given that the example brings itself.
    """
    out = OUT if given.paths.out == PathwaysConfig().paths.out else given.paths.out
    if others := sorted(name for name in given.model_fields_set & set(PathwaysConfig.model_fields) if name not in OWN):
        raise ConfigError(
            f"--example brings its own {others[0]}: run it without, change {out / CONFIG}, and run that with --config"
        )
    from fvcore.experiments.sae.logged import Asked

    asked, folder = Asked(seed=given.runtime.seed), Folder(out)
    settings = _settings(out, given, asked)
    depends = asdict(asked) | {"model": settings.model.name}
    with locked(out, "--paths-out"):
        stage = Stage("data of the example", depends, (), partial(_made, folder, settings, asked))
        Record(folder, RECORD, "--paths-out").run([stage], progress)
        write_text(folder / CONFIG, settings.text())
    return settings


def _settings(out: Path, given: PathwaysConfig, asked: Asked) -> PathwaysConfig:
    found: dict[str, Any] = {
        "paths.checkpoints": str(out / CHECKPOINTS),
        "paths.response_logs": str(out / LOGS),
        "paths.out": out,
        "sae.source": str(out / "autoencoders"),
        **{f"prompts.{kind}": text for kind, text in asked.prompts().items()},
        **{f"runtime.{name}": value for name, value in given.runtime.model_dump(mode="json").items()},
    }
    return resolve(PathwaysConfig, found, SETTINGS)


def _made(folder: Folder, settings: PathwaysConfig, asked: Asked, advance: Advance) -> list[Path]:
    from fvcore.experiments.sae import bench
    from fvcore.experiments.sae.logged import Logged
    from fvcore.experiments.sae.store import Store
    from fvcore.experiments.sae.train import train

    trained = train(Training(model=settings.model.name, out=Path(settings.sae.source), seed=settings.runtime.seed))
    if trained.failures:
        raise StepError(f"the autoencoders of the example: {'; '.join(trained.failures)}")
    lm = bench.load_model(settings)
    store = Store(settings.sae, lm.d_model, lm.device)
    Logged(lm, {layer: store.sae(layer) for layer in range(lm.n_layers)}, asked).write(folder.root, advance)
    return [folder / name for glob in ("autoencoders/**/*.*", CHECKPOINTS, LOGS) for name in folder.names(glob)]
