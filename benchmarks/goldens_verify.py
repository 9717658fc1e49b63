"""Record every committed golden again from a checkout of the reference, and compare the bytes.

    python benchmarks/goldens_verify.py PATH_OF_CHECKOUT

Nothing under `golden/` is changed. Exit status 1 if any file differs.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console

from fvcore import trials
from fvcore.model import model as models
from fvcore.pipeline import Settings
from pytest_fvparity import shipped
from pytest_fvparity.golden import golden
from pytest_fvparity.reference import reference

ROOT = Path(__file__).resolve().parents[1]
console = Console(highlight=False)


def differing_files(path: Path, checkout: Path) -> list[str]:
    """Record what the manifest at `path` describes; the names of the files that come out otherwise."""
    recorded = golden.Golden.open(path)
    identity, model = recorded.profile.identity, recorded.profile.conditions.model
    fixed = trials.read(ROOT / shipped.FIXED_TRIALS / f"{identity.fixed_trials_id}.json")
    settings = Settings(
        edit_layer=identity.edit_layer,
        n_top_heads=identity.n_top_heads,
        token_class_idx=identity.token_class_idx,
        reference_profile=identity.reference_profile,
    )
    lm = models.load(model, attn=recorded.profile.conditions.attn_implementation)
    with tempfile.TemporaryDirectory() as scratch:
        again = Path(scratch)
        golden.write(reference.run(checkout, lm, fixed, settings), again)
        names = {file.name for folder in (path, again) for file in folder.iterdir()}
        return sorted(n for n in names if not golden.same_bytes(path / n, again / n))


def main(checkout: Path) -> int:
    wrong = 0
    for manifest in sorted((ROOT / "golden").rglob(golden.MANIFEST)):
        start = time.perf_counter()
        different = differing_files(manifest.parent, checkout)
        wrong += bool(different)
        verdict = f"differs: {', '.join(different)}" if different else "the same bytes"
        took = time.perf_counter() - start
        console.print(f"{manifest.parent.relative_to(ROOT)}: {verdict} ({took:.1f} s)", soft_wrap=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
