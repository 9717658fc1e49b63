"""Step 1: reads the data once more and writes what is gone on with."""

from pathlib import Path
from typing import Any

from fvcore.experiments.folder import Folder
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.sae.audit import LOADING, files_of, fingerprint
from fvcore.experiments.sae.checkpoints import Checkpoints
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.experiments.sae.contexts import CONTEXTS, Draws, contexts
from fvcore.experiments.sae.features import FEATURES, choose
from fvcore.experiments.sae.issues import Issues
from fvcore.experiments.sae.readers import Oddities, is_read, read_records
from fvcore.experiments.sae.schemas import CausalFeatures, PromptsSample
from fvcore.formats import FormatError

READING = "Reading responses"


def load(settings: PathwaysConfig, forced: bool = False, progress: Progressing | None = None) -> list[Path]:
    """Write the features, and where there are prompts the contexts; returns the files.

    forced: the data did not pass, which the file says
    """
    folder, watched = Folder(settings.paths.out), Watched(progress)
    texts = settings.prompts.texts()
    tokenizer = _tokenizer(settings) if texts else None
    draws = Draws(texts, settings.contexts, settings.conditions.aliases)
    logged = _read_logs(settings, draws, watched)
    features = _features(settings, logged, watched, forced)
    sample = [
        one
        for kind, text in texts.items()
        for one in contexts(tokenizer, kind, text, draws.of(kind), settings.contexts)
    ]
    return folder.write({FEATURES: features.model_dump(mode="json")} | _sample(settings, sample))


def _sample(settings: PathwaysConfig, sample: list[Any]) -> dict[str, Any]:
    if not sample:
        return {}
    name = settings.tokens.tokenizer or settings.model.name
    file = PromptsSample(tokenizer=name, seed=settings.contexts.seed, contexts=sample)
    return {CONTEXTS: file.model_dump(mode="json")}


def _tokenizer(settings: PathwaysConfig) -> Any:
    from fvcore.model.model import load_tokenizer

    return load_tokenizer(settings.tokens.tokenizer or settings.model.name)


def _features(settings: PathwaysConfig, logged: set[str], watched: Watched, forced: bool) -> CausalFeatures:
    files = [path for path in files_of(settings.paths.checkpoints) if is_read(path)]
    found = Checkpoints(Issues(0), Oddities())
    with watched.running(LOADING, len(files)) as advance:
        found.read(files, advance)
    return choose(found.best, logged, settings.features, fingerprint(settings), forced)


def _read_logs(settings: PathwaysConfig, draws: Draws, watched: Watched) -> set[str]:
    """The features that stand in the logs; a file ends where it is damaged, which only forced data is."""
    files = [path for path in files_of(settings.paths.response_logs) if is_read(path)]
    logged: set[str] = set()
    with watched.running(READING, len(files)) as advance:
        for number, path in enumerate(files, start=1):
            try:
                for feature, condition, trial, response in read_records(path, Oddities()):
                    if isinstance(feature, str):
                        logged.add(feature)
                    draws.offer(path.name, feature, condition, trial, response)
            except FormatError:
                pass
            advance(number, 1)
    return logged
