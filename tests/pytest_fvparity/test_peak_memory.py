"""What a candidate takes beside its weights stands in the verdict of each key that it worked on."""

from __future__ import annotations

from tests.late import RUNNING

if RUNNING:
    import torch

    from fvcore.artifacts import Artifact
    from fvcore.pipeline import Pipeline
    from pytest_fvparity.selftest.rig import rig_of


MIB = 2**20


def greedy(self: Pipeline, prompts: Artifact, slot_map: Artifact) -> Artifact:
    torch.ones(64 * MIB // 4)
    return Pipeline.mean_activations(self, prompts, slot_map)


def test_a_greedy_key_shows_and_the_others_do_not() -> None:
    results = {r.key: r for r in rig_of("llama").judge(rig_of("llama").candidate(mean_activations=greedy))}

    peaks = {key: float(result.verdict.measurements["peak_memory_mib"]) for key, result in results.items()}
    assert peaks["mean_activations"] > 60
    assert max(peak for key, peak in peaks.items() if key != "mean_activations") < 60
