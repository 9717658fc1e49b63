"""Record every committed golden again from a checkout of the reference, and compare: the bytes where the golden says that
it was recorded with the same kernels as this machine has, else the numbers within their tolerances.

    python benchmarks/goldens_verify.py PATH_OF_CHECKOUT [--add]

Nothing is changed, but with `--add`: of a golden that is met, leaves that nobody need provide and that it
lacks are written beside the others, and its manifest says so. Exit status 1 if any differs.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fvcore import artifacts, shipped
from fvcore.compare import compare
from fvcore.model.model import load
from fvcore.pipeline import Settings
from fvcore.trials.fixed import FixedTrials
from fvcore.trials.sampled import NAME as SAMPLED
from fvcore.trials.sampled import read_trials
from pytest_fvparity.golden import golden
from pytest_fvparity.golden import manifest as manifests
from pytest_fvparity.golden.manifest import Added
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.parity.partial import FURTHER
from pytest_fvparity.parity.tolerances import Tolerances
from pytest_fvparity.reference import reference

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "docs" / "examples"
console = Console(highlight=False)


def trials_of(digest: str) -> FixedTrials:
    """The committed trials that a golden was recorded from, wherever they lie: a relation's under its q_id."""
    places = [*(ROOT / shipped.FIXED_TRIALS).glob("*.json"), *EXAMPLES.glob("*/trials/*.json")]
    places += (ROOT / "datasets").rglob(SAMPLED)
    return next(fixed for fixed in map(read_trials, places) if fixed.sha256 == digest)


def differing(path: Path, checkout: Path, add: bool) -> tuple[list[str], str]:
    """Record what the manifest at `path` describes: which files or keys come out otherwise, and how they were compared."""
    recorded = golden.Golden.open(path)
    identity, model = recorded.profile.identity, recorded.profile.conditions.model
    fixed = trials_of(identity.trials_sha256)
    settings = Settings(
        edit_layer=identity.edit_layer,
        n_top_heads=identity.n_top_heads,
        token_class_idx=identity.token_class_idx,
        reference_profile=identity.reference_profile,
    )
    lm = load(model, attn=recorded.profile.conditions.attn_implementation)
    known = recorded.profile.conditions.processor is not None  # or its bytes, noise among them, need not come again
    made = reference.run(checkout, lm, fixed, settings, with_noise=known or add)
    if not recorded.profile.same_kernels(made.profile):
        processor = recorded.profile.processor_against(made.profile)
        tolerances = Tolerances.read(None, (), lm.dtype, lm.device.type, recorded.noise, processor)
        lacking = further_lacking(recorded)
        again = {k: {n: v for n, v in made.stored(k).items() if n not in lacking} for k in CHECK_KEYS}
        verdicts = {k: compare(recorded.stored(k), again[k], tolerances.of(k)) for k in CHECK_KEYS}
        different = [k for k, verdict in verdicts.items() if not verdict.passed]
        if add and lacking and not different:
            added_to(recorded, made, sorted(lacking))
        return different, f"within tolerances; processor {processor}"
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch)
        golden.write(made, again)
        return golden.differing_files(path, again), "the same bytes"


def further_lacking(recorded: golden.Golden) -> set[str]:
    return FURTHER - recorded.artifacts["top_heads"].keys()


def added_to(recorded: golden.Golden, made: reference.Recording, leaves: list[str], key: str = "top_heads") -> None:
    """Write a run's leaves beside those that a golden holds of a key."""
    path, old = recorded.path, recorded.manifest
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=golden.STAGING) as scratch:
        staged = shutil.copytree(path, Path(scratch) / "staged", ignore=shutil.ignore_patterns(golden.MANIFEST))
        artifacts.save(recorded.stored(key) | {leaf: made.stored(key)[leaf] for leaf in leaves}, staged / key)
        noise = old.noise | {key: old.noise[key] | {leaf: made.noise.largest[key][leaf] for leaf in leaves}}
        run = Added(leaves={key: leaves}, conditions=made.profile.conditions, variations=list(made.noise.variations))
        files = manifests.digests(staged)
        manifests.write(old.model_copy(update={"files": files, "noise": noise, "added": run}), staged)
        golden.swap(staged, path)


def main(checkout: Path, add: bool = False) -> int:
    wrong = 0
    for manifest in sorted(path for root in (ROOT / "golden", EXAMPLES) for path in root.rglob(golden.MANIFEST)):
        if add and not further_lacking(golden.Golden.open(manifest.parent)):
            continue
        start = time.perf_counter()
        different, held = differing(manifest.parent, checkout, add)
        wrong += bool(different)
        verdict = f"differs: {', '.join(different)}" if different else held
        took = time.perf_counter() - start
        console.print(f"{manifest.parent.relative_to(ROOT)}: {verdict} ({took:.1f} s)", soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "--add" in sys.argv))
