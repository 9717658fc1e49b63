"""A small relation run for the transfer tests: three q_ids of the shipped model, one of them too small, and one golden."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

PAIRS = {
    "Q1": [("hot", "cold"), ("big", "small"), ("old", "young"), ("rich", "poor"), ("dark", "bright")],
    "Q2": [("cold", "hot"), ("small", "big"), ("young", "old"), ("poor", "rich"), ("bright", "dark")],
    "Q3": [("hot", "cold"), ("big", "small")],
}


@dataclass(frozen=True)
class TransferWorld:
    root: Path
    golden: Path

    @classmethod
    def below(cls, folder: Path) -> TransferWorld:
        """The world that `make_transfer_world` made in `folder`."""
        return cls(folder / "run" / "tiny-llama", folder / "golden")

    @property
    def options(self) -> list[str]:
        # With `=`: pytest takes an existing path that stands alone for a test path, and moves its rootdir there.
        return ["--fv-model=tiny-llama", f"--fv-relation-root={self.root}", f"--fv-golden={self.golden}"]


def make_transfer_world(folder: Path) -> TransferWorld:
    """The golden of Q1 is what engine `exact` gives: planted faults are the only difference."""
    from fvcore import pipeline
    from fvcore.experiments.relation import data
    from fvcore.experiments.relation.config import RelationSettings
    from fvcore.experiments.relation.run import run
    from fvcore.experiments.workers import Local
    from fvcore.model import model as models
    from fvcore.trials.sampled import read_trials
    from tests.pytest_fvparity.worlds import record

    world, csv = TransferWorld.below(folder), folder / "pairs.csv"
    rows = [f"{q_id},{a},{b}" for q_id, pairs in PAIRS.items() for a, b in pairs]
    csv.write_text("\r\n".join(["id,ex_A,ex_B", *rows, ""]))
    lm = models.load("tiny-llama")
    how = RelationSettings(n_trials=3, n_shots=3, top_heads=4, n_eval=3, n_random=1, pictures=False)
    run(data.read(csv), world.root, how, Local(lm))
    settings = pipeline.Settings(edit_layer=3, n_top_heads=4)
    record(lm, read_trials(world.root / "Q1" / "artifacts" / "sampled_trials.json"), world.golden, settings)
    return world


def break_vector(world: TransferWorld, q_id: str) -> None:
    """The q_id's vector is another, and its status says that this is right."""
    from fvcore.experiments.relation import files
    from fvcore.experiments.steps import layout
    from fvcore.formats import read_json, read_pt, sha256_file, write_json, write_pt

    folder = world.root / q_id
    value = read_pt(folder / layout.FV)
    value["fv_global_resid"][0] += 1
    write_pt(folder / layout.FV, value)
    status = read_json(folder / files.STATUS)
    status["files"][layout.FV] = sha256_file(folder / layout.FV)
    write_json(folder / files.STATUS, status)
