"""Record what the public reference says of tiny random models of five families; the goldens lie beside this file.

python -m tests.pytest_fvparity.record_family_goldens PATH_OF_A_CHECKOUT
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from fvcore.embedded.random_models import AWKWARD_PAIRS, random_lm, trials_for
from fvcore.model.model import LanguageModel, load
from fvcore.pipeline import Settings
from fvcore.trials import fixed as trials
from pytest_fvparity.golden import golden
from pytest_fvparity.reference import reference
from tests.pytest_fvparity.family_goldens import FAMILIES, FOLDER

SETTINGS = Settings(edit_layer=0, n_top_heads=3, engine="exact")


def world(family: str, folder: Path) -> tuple[LanguageModel, trials.FixedTrials]:
    """The model of a family, from disk as the reference loads it, and its trials."""
    random_lm(family, directory=folder / family, pairs=AWKWARD_PAIRS)
    lm = load(str(folder / family))
    path = folder / f"fixed_trials_pairs_{family}.json"
    trials.write(path, trials_for(lm, n_trials=2, pairs=AWKWARD_PAIRS).file)
    return lm, trials.read(path)


def main(checkout: Path) -> None:
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            lm, fixed = world(family, Path(folder))

            def record(with_noise: bool, lm=lm, fixed=fixed) -> reference.Recording:  # type: ignore[no-untyped-def]
                return reference.run(checkout, lm, fixed, SETTINGS, with_noise=with_noise)

            golden.regenerate(record, FOLDER / family)
            print(FOLDER / family)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
