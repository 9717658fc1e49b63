"""The drill: for mean activations that differ, the first module whose values differ from the reference's.

`search.py` looks, with `candidate_modules.py` on the candidate's side; `conclusion.py` is what it says. Nothing that is
said here changes a verdict: it stands beside it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, cast

from fvcore.gates import Finding, NotProvided, Verdict
from pytest_fvparity.drill.conclusion import Conclusion

if TYPE_CHECKING:
    from torch import nn

    from fvcore.artifacts import Artifact
    from fvcore.model.model import LanguageModel
    from pytest_fvparity.parity.implementation import Implementation
    from pytest_fvparity.parity.tolerances import Tolerances

KEY = "mean_activations"


class Run(Protocol):
    """What the drill asks of the run it belongs to. `reference` loads a model anew; without it nothing is drilled."""

    candidate: Implementation
    tolerances: Tolerances
    model: nn.Module | None
    reference: Callable[[], LanguageModel] | None

    def expected(self, key: str) -> Artifact: ...


def drilled(run: Run, key: str, verdict: Verdict) -> Verdict:
    """A failed verdict with what the drill found: `details["drill"]`, and its conclusion as a warning."""
    layers = [f.coordinate["layer"] for f in verdict.findings if f.blocking and "layer" in f.coordinate]
    if key != KEY or run.reference is None or not layers:
        return verdict
    layer = cast("int", layers[0])  # findings come in the order of layers
    conclusion = _searched(run, layer, verdict.details.get("fault"))
    details = conclusion.details(layer)
    row = details["first"] or {}
    off = row.get("max_abs_diff")
    warning = Finding(
        KEY,
        details["conclusion"],
        row.get("expected"),
        row.get("actual"),
        {"layer": layer, **conclusion.coordinate},
        off if isinstance(off, float) else None,
        blocking=False,
    )
    return replace(verdict, findings=(*verdict.findings, warning), details={**verdict.details, "drill": details})


def _searched(run: Run, layer: int, fault: str | None) -> Conclusion:
    if fault in {"inherited", "accumulated"}:
        return Conclusion(
            "inherited",
            "on the reference's prompts and slots the means agree, so no module is at fault: the difference comes with the "
            "candidate's own prompt_boundary or slot_map",
        )
    try:
        from pytest_fvparity.drill.search import search

        return search(run, layer)
    except KeyboardInterrupt:
        raise
    except NotProvided as error:
        return Conclusion("not_provided", f"the modules could not be compared: {error}")
    except BaseException as error:  # pytest's own outcomes too: nothing in here may decide anything
        return Conclusion("failed", f"it could not be done: {type(error).__name__}: {error}")
