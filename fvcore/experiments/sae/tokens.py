"""Step 4: which tokens go with a feature: those that responses hold more or less often when the feature is set to a value."""

from collections.abc import Iterator, Sequence
from heapq import nsmallest
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fvcore.experiments.folder import Folder
from fvcore.experiments.progress import Progressing, Watched
from fvcore.experiments.sae import features
from fvcore.experiments.sae.association import Compared, Ids, compare
from fvcore.experiments.sae.audit import files_of
from fvcore.experiments.sae.config import Comparison, PathwaysConfig
from fvcore.experiments.sae.lens import Lens, lens
from fvcore.experiments.sae.readers import Oddities, is_read, read_records
from fvcore.experiments.sae.schemas import Row
from fvcore.experiments.sae.steps import TOKENS
from fvcore.formats import FormatError, sha256

TOKENISING, COUNTING = "Tokenising responses", "Tokens"
Cells: TypeAlias = dict[tuple[str, str], list[Ids]]
"""Feature and condition -> the tokens of each response (token,)."""


class OfFeature(Row):
    layer: int
    feature_id: int
    comparisons: dict[str, Compared]
    logit_lens: Lens | None


class TokenAssociations(Row):
    """`results/tokens/token_associations.json`, by feature as they were chosen. metadata: how, and what was read."""

    metadata: dict[str, Any]
    token_associations: dict[str, OfFeature]


def tokens(settings: PathwaysConfig, progress: Progressing | None = None) -> list[Path]:
    """Write what goes with each chosen feature; returns the file. The model is loaded for the logit lens alone."""
    from fvcore.model.model import load_tokenizer

    folder, watched, own = Folder(settings.paths.out), Watched(progress), settings.tokens
    chosen = features.read(folder)
    tokenizer = load_tokenizer(own.tokenizer or settings.model.name)
    cells, repeated = read(settings, {one.feature for one in chosen}, tokenizer, watched)
    lenses = lens(settings, chosen, own.logit_lens.top_k, watched) if own.logit_lens.enabled else {}
    found: dict[str, OfFeature] = {}
    with watched.running(COUNTING, len(chosen)) as advance:
        for one in chosen:
            compared = {by.name: _compared(by, one.feature, cells, settings, tokenizer) for by in own.comparisons}
            found[one.feature] = OfFeature(
                layer=one.layer,
                feature_id=one.feature_id,
                comparisons=compared,
                logit_lens=lenses.get(one.feature),
            )
            advance(one.layer, 1)
    about = {
        "schema_version": 1,
        "tokenizer": own.tokenizer or settings.model.name,
        "vocab_size": len(tokenizer),
        "mode": own.mode,
        "q": own.q,
        "baseline_pool": own.baseline_pool,
        "responses": sum(map(len, cells.values())),
        "repeated_trials_left_out": repeated,
    }
    file = TokenAssociations(metadata=about, token_associations=found)
    return folder.write({TOKENS: file.model_dump(mode="json")})


def read(settings: PathwaysConfig, features: set[str], tokenizer: Any, watched: Watched) -> tuple[Cells, int]:
    """Tokens of the responses that comparisons of these features need, and how many records repeat a trial.

    Of a trial that stands there twice the first counts: twice the same draw is one witness.
    """
    own, aliases = settings.tokens, settings.conditions.aliases
    wanted = {name for one in own.comparisons for name in (one.baseline, one.patched)}
    files = [path for path in files_of(settings.paths.response_logs) if is_read(path)]
    cells: Cells = {}
    seen: set[tuple[str, str, int]] = set()
    repeated = 0
    with watched.running(TOKENISING, len(files)) as advance:
        for number, path in enumerate(files, start=1):
            kept: list[tuple[tuple[str, str], str]] = []
            for feature, condition, trial, response in _whole(path):
                if feature not in features or (name := aliases.get(condition, condition)) not in wanted:
                    continue
                if isinstance(trial, int):
                    repeated += (feature, name, trial) in seen
                    if (feature, name, trial) in seen:
                        continue
                    seen.add((feature, name, trial))
                kept.append(((feature, name), response))
            encoded = encode(tokenizer, [text for _, text in kept])
            for (cell, _), ids in zip(kept, encoded, strict=True):
                cells.setdefault(cell, []).append(ids)
            advance(number, 1)
    return cells, repeated


def _whole(path: Path) -> Iterator[tuple[str, str, Any, str]]:
    """Records that are texts; a file ends where it is damaged, which only forced data is."""
    try:
        for feature, condition, trial, response in read_records(path, Oddities()):
            if isinstance(feature, str) and isinstance(condition, str) and isinstance(response, str):
                yield feature, condition, trial, response
    except FormatError:
        return


def encode(tokenizer: Any, texts: Sequence[str]) -> list[Ids]:
    """Tokens of each text, no special ones; half a surrogate pair, which no tokenizer takes, is a question mark."""
    if not texts:
        return []
    whole = [text.encode(errors="replace").decode() for text in texts]
    return [np.asarray(ids, dtype=np.int64) for ids in tokenizer(whole, add_special_tokens=False).input_ids]


def _compared(by: Comparison, feature: str, cells: Cells, settings: PathwaysConfig, tokenizer: Any) -> Compared:
    own = settings.tokens
    baseline = cells.get((feature, by.baseline), [])
    if own.baseline_pool == "pooled":
        baseline = _pool(cells, by.baseline, own.pooled_max, settings.runtime.seed)
    draw = f"{settings.runtime.seed}|{feature}|{by.name}"
    return compare(baseline, cells.get((feature, by.patched), []), own, draw, tokenizer)


def _pool(cells: Cells, condition: str, most: int, seed: int) -> list[Ids]:
    """At most `most` responses of all features under a condition, drawn alike for every feature."""
    every = (
        (feature, at, ids) for (feature, name), of in cells.items() if name == condition for at, ids in enumerate(of)
    )
    return [ids for *_, ids in nsmallest(most, every, key=lambda one: sha256(f"{seed}|{one[0]}|{one[1]}".encode()))]
