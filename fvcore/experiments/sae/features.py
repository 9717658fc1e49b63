"""Step 1: the features that are gone on with, the strongest of each layer."""

from collections.abc import Iterable, Mapping, Sequence, Set
from math import isfinite, sqrt
from statistics import mean, variance

from fvcore.experiments.folder import Folder
from fvcore.experiments.sae.checkpoints import Kept
from fvcore.experiments.sae.config import Features
from fvcore.experiments.sae.schemas import CausalFeatures, Feature, FeaturesMetadata, Result
from fvcore.experiments.statistics import adjusted
from fvcore.formats import read_json, validated

FEATURES = "data/causal_features.json"


def read(folder: Folder) -> list[Feature]:
    """Those that a run has chosen."""
    path = folder / FEATURES
    return validated(CausalFeatures, read_json(path), path, "chosen features").features


def cohen_d(first: Sequence[float], second: Sequence[float]) -> float | None:
    """(mean of `first` - mean of `second`) over their pooled deviation; None where there is none."""
    n1, n2 = len(first), len(second)
    if min(n1, n2) < 2:
        return None
    pooled = sqrt(((n1 - 1) * variance(first) + (n2 - 1) * variance(second)) / (n1 + n2 - 2))
    difference = mean(first) - mean(second)
    return difference / pooled if pooled else None if difference else 0.0


def choose(
    kept: Mapping[str, Kept], logged: Set[str], settings: Features, fingerprint: str, forced: bool = False
) -> CausalFeatures:
    """The first `top_k_per_layer` of each layer by rank, of equal ones the smaller id.

    logged: features that stand in the logs     forced: they were chosen although the data did not pass
    """
    first, last = settings.layers
    corrected = _corrected(kept)
    per_layer: dict[str, dict[str, int | float | None]] = {}
    chosen: list[Feature] = []
    for layer in range(first, last + 1):
        of_layer = [one for one in kept.values() if one.result.layer == layer]
        best = sorted(
            (one for one in of_layer if _is_usable(one.result, logged, settings)),
            key=lambda one: (-strength(one.result, settings.rank_by), one.result.feature_id),
        )[: settings.top_k_per_layer]
        chosen += _features(best, logged, corrected)
        smallest = min((abs(one.result.cohen_d) for one in best), default=None)
        per_layer[str(layer)] = {"causal": _n_causal(of_layer), "kept": len(best), "min_abs_d_kept": smallest}
    return CausalFeatures(
        metadata=FeaturesMetadata(
            rank_by=settings.rank_by,
            top_k_per_layer=settings.top_k_per_layer,
            layers=settings.layers,
            total_causal=_n_causal(kept.values()),
            total_filtered=len(chosen),
            per_layer=per_layer,
            source_fingerprint=fingerprint,
            forced=forced,
        ),
        features=chosen,
    )


def _n_causal(kept: Iterable[Kept]) -> int:
    return sum(one.result.is_causal for one in kept)


def _is_usable(result: Result, logged: Set[str], settings: Features) -> bool:
    causal = result.is_causal or not settings.require_causal
    joinable = result.feature in logged or not settings.require_joinable
    return causal and joinable and isfinite(result.cohen_d) and abs(result.cohen_d) >= settings.min_abs_d


def strength(result: Result, rank_by: str) -> float:
    """What features are ranked by; an effect that was not measured counts as none."""
    effect = max(abs(_finite(result.safe_effect) or 0.0), abs(_finite(result.risky_effect) or 0.0))
    size = abs(result.cohen_d)
    return {"cohen_d": size, "causal_effect": effect, "combined": size * effect}[rank_by]


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None


def _p_values(result: Result) -> dict[str, float | None]:
    return {"safe": _finite(result.safe_p_value), "risky": _finite(result.risky_p_value)}


def _corrected(kept: Mapping[str, Kept]) -> dict[str, float]:
    """Feature -> its smaller p-value, by Benjamini-Hochberg over all features and both prompts, causal or not."""
    tests = [(name, p) for name, one in kept.items() for p in _p_values(one.result).values() if p is not None]
    found: dict[str, float] = {}
    for (name, _), q in zip(tests, adjusted([p for _, p in tests]), strict=True):
        found[name] = min(q, found.get(name, 1.0))
    return found


def _features(best: Sequence[Kept], logged: Set[str], corrected: Mapping[str, float]) -> list[Feature]:
    by_size = sorted(best, key=lambda one: (-abs(one.result.cohen_d), one.result.feature_id))
    ranks = {one.result.feature: rank for rank, one in enumerate(by_size, start=1)}
    return [
        Feature(
            feature=(result := one.result).feature,
            layer=result.layer,
            feature_id=result.feature_id,
            cohen_d=result.cohen_d,
            abs_d_rank_in_layer=ranks[result.feature],
            direction="risky" if result.cohen_d > 0 else "safe",
            safe_effect=_finite(result.safe_effect),
            risky_effect=_finite(result.risky_effect),
            p_values=_p_values(result),
            q_causal=corrected.get(result.feature),
            n_source_files=one.n_files,
            joinable=result.feature in logged,
        )
        for one in best
    ]
