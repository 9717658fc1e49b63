"""Record every committed golden again from a checkout of the reference, and compare: the bytes where the golden says that
it was recorded with the same kernels as this machine has, else the numbers within their tolerances.

    python benchmarks/goldens_verify.py PATH_OF_CHECKOUT

Nothing under `golden/` is changed. Exit status 1 if any differs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fvcore.compare import compare
from fvcore.model.model import load
from fvcore.pipeline import Settings
from fvcore.trials.fixed import FixedTrials
from fvcore.trials.sampled import NAME as SAMPLED
from fvcore.trials.sampled import read_trials
from pytest_fvparity import shipped
from pytest_fvparity.golden import golden
from pytest_fvparity.parity.implementation import CHECK_KEYS
from pytest_fvparity.parity.tolerances import Tolerances
from pytest_fvparity.reference import reference

ROOT = Path(__file__).resolve().parents[1]
console = Console(highlight=False)


def trials_of(digest: str) -> FixedTrials:
    """The committed trials that a golden was recorded from, wherever they lie: a relation's under its q_id."""
    places = [*(ROOT / shipped.FIXED_TRIALS).glob("*.json"), *(ROOT / "datasets").rglob(SAMPLED)]
    return next(fixed for fixed in map(read_trials, places) if fixed.sha256 == digest)


def differing(path: Path, checkout: Path) -> tuple[list[str], str]:
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
    made = reference.run(checkout, lm, fixed, settings, with_noise=known)
    if not recorded.profile.same_kernels(made.profile):
        processor = recorded.profile.processor_against(made.profile)
        tolerances = Tolerances.read(None, (), lm.dtype, lm.device.type, recorded.noise, processor)
        verdicts = {k: compare(recorded.stored(k), made.stored(k), tolerances.of(k)) for k in CHECK_KEYS}
        return [k for k, verdict in verdicts.items() if not verdict.passed], f"within tolerances; processor {processor}"
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch)
        golden.write(made, again)
        return golden.differing_files(path, again), "the same bytes"


def main(checkout: Path) -> int:
    wrong = 0
    for manifest in sorted((ROOT / "golden").rglob(golden.MANIFEST)):
        start = time.perf_counter()
        different, held = differing(manifest.parent, checkout)
        wrong += bool(different)
        verdict = f"differs: {', '.join(different)}" if different else held
        took = time.perf_counter() - start
        console.print(f"{manifest.parent.relative_to(ROOT)}: {verdict} ({took:.1f} s)", soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
