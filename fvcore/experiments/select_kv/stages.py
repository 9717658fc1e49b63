"""What the stages of a run do that ask the model: each computes, and writes its files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore.experiments.folder import Folder
from fvcore.experiments.select_kv import budgets, files, layers, reuse, states
from fvcore.experiments.select_kv.bench import Bench
from fvcore.experiments.select_kv.compute import on_rows, rotation_checks
from fvcore.experiments.select_kv.data import off_samples, on_samples
from fvcore.experiments.select_kv.model_runtime import load_runtime
from fvcore.experiments.select_kv.off import off_rows, state_prefixes
from fvcore.experiments.select_kv.reading import on_rows_of
from fvcore.experiments.select_kv.schemas import OffRow, OnRow

if TYPE_CHECKING:
    from fvcore.experiments.select_kv.config import Phase2
    from fvcore.experiments.select_kv.data import OffSample, OnSample
    from fvcore.experiments.select_kv.runtime import Runtime
    from fvcore.fast.chunks import Advance

NAMES = {"n_layers": "layers", "n_heads": "heads", "n_kv_heads": "kv_heads", "d_head": "head_dim"}
"""Of a runtime's facts -> as the plan's file calls them."""

WHERE = {"query_position_first", "query_position_last", "attention_mask_len", "attention_mask_sum"}
STRESS = ("sample_id", "stress_state_id", "stress_delta", "typical_state_id", "typical_delta")


@dataclass(frozen=True)
class Asking:
    """A model that is there, the samples that it is asked, and the folder that its answers go to."""

    bench: Bench
    folder: Folder
    on: Sequence[OnSample]
    off: Sequence[OffSample]

    @classmethod
    def of(cls, settings: Phase2, folder: Folder, runtime: Runtime | None) -> Asking:
        """runtime: what answers in place of the model that the settings name"""
        asked = load_runtime(settings) if runtime is None else runtime
        bench = Bench.of(asked, settings)
        on, off = on_samples(settings, asked.tokenizer), off_samples(settings, asked.tokenizer)
        bench.require_room(on)
        return cls(bench, folder, on, off)

    @property
    def came_to(self) -> dict[str, str]:
        """What `auto` came to, by the settings' keys."""
        builder = self.bench.builder
        return {"injection.kv_source": builder.kv_source, "injection.positioning_mode": builder.positioning_mode}

    def ask_on(self, advance: Advance) -> list[Path]:
        rows = on_rows(self.bench, self.on, advance)
        meta = self._runtime_meta(rows[0]) | {"rotation": rotation_checks(self.bench, self.on[0])}
        return self.folder.write(
            {
                files.ON_ROWS: [row.model_dump(mode="json") for row in rows],
                files.SELECTION: [row.selection.model_dump(mode="json") for row in rows],
                files.PREFIX_META: [row.prefix.model_dump(mode="json") for row in rows],
                files.RUNTIME_META: meta,
            }
        )

    def ask_off(self, advance: Advance) -> list[Path]:
        rows = off_rows(self.bench, self.on, on_rows_of(self.folder), self.off, advance)
        return self.folder.write(
            {files.OFF_ROWS: [row.model_dump(mode="json") for row in rows], files.OFF_STRESS: _stress(rows)}
        )

    def save_states(self, advance: Advance) -> list[Path]:
        paths = []
        for sample, row in zip(self.on, on_rows_of(self.folder), strict=True):
            prefix = state_prefixes(self.bench, sample, row)["select"]
            about = {"sample_id": sample.sample_id, "episode_id": sample.episode_id, "query": sample.query_text}
            path = self.folder / files.state(sample.sample_id)
            paths.append(states.save(path, prefix, self.bench.runtime.info, about))
            advance(0, 1)
        return paths

    def layer_curves(self, advance: Advance) -> list[Path]:
        curves = {
            files.LAYER_CURVE: layers.curve(self.bench, self.on, advance),
            files.REUSE: reuse.curve(self.bench, self.on, advance),
        }
        return self.folder.write(curves)

    def budget_curve(self, advance: Advance) -> list[Path]:
        return self.folder.write({files.BUDGET_CURVE: budgets.curve(self.bench, self.on, self.off, advance)})

    def _runtime_meta(self, first: OnRow) -> dict[str, Any]:
        """The model as it ran, and how the first sample met it."""
        info, prefix = asdict(self.bench.runtime.info), first.prefix
        return {
            **{NAMES.get(name, name): value for name, value in info.items()},
            "first_sample": {
                **first.selection.model_dump(include={"sample_id", "demo_len", "query_len"}),
                "past_len": prefix.cache_len,
                **prefix.model_dump(include=WHERE),
            },
            "warnings": list(self.bench.builder.warnings),
        }


def _stress(rows: Sequence[OffRow]) -> list[dict[str, Any]]:
    """Which state moves each OFF prompt most, and which one it falls to; the most moved first."""
    asked = [(row.sample_id, arm) for row in rows if (arm := row.arms.get("select"))]
    # One that is not finite is the worst there is.
    asked.sort(key=lambda pair: math.inf if pair[1].stress is None else pair[1].stress, reverse=True)
    states = [(sample_id, arm.stress_state, arm.stress, arm.typical_state, arm.typical) for sample_id, arm in asked]
    return [dict(zip(STRESS, one, strict=True)) for one in states]
