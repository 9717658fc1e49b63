"""What `--fv-regen-golden` does: record the reference for every trials file of the run, and say what changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fvcore.formats import FormatError
from fvcore.gates import StageError
from pytest_fvparity.fixtures import recording_settings
from pytest_fvparity.options import ParityOptions

if TYPE_CHECKING:
    from fvcore.trials import FixedTrials
    from pytest_fvparity.reference import Recording


def record_goldens(config: pytest.Config, options: ParityOptions, files: Sequence[Path]) -> None:
    """Record and swap in one golden per file.

    Every file is read and checked before anything is recorded. A refusal ends the run with its reason; it changes
    nothing of its own golden, and says which were recorded before it.
    """
    if not files:
        raise pytest.UsageError("--fv-regen-golden: no parity stage is selected, so there is nothing to record")
    from fvcore import models, trials
    from fvcore.models import ModelError
    from fvcore.prompts import require_verified
    from pytest_fvparity import golden, reference

    terminal = config.pluginmanager.get_plugin("terminalreporter")
    settings, recorded = recording_settings(options), list[str]()
    try:
        lm = models.load(options.model, "cpu", options.dtype, options.attn, options.seed)
        settings.require_fit(lm)
        read = [trials.read(file) for file in files]
        for fixed in read:
            require_verified(fixed, lm.tokenizer)
        for fixed in read:
            place = golden.relative_path(fixed.dataset, fixed.id, options.reference_profile)

            def record(with_noise: bool, fixed: FixedTrials = fixed) -> Recording:
                return reference.run(options.src, lm, fixed, settings, options.src_python, with_noise)

            done = golden.regenerate(record, (options.golden or options.rootdir / "golden") / place)
            recorded.append(fixed.id)
            if terminal is not None:
                terminal.write_line(f"fvparity: recorded {done.path} twice, byte for byte the same")
                for key, change in done.changes.items():
                    terminal.write_line(f"  {key:<18}{change}")
                terminal.write_line(f"  {golden.Golden.open(done.path).noise}")
    except (StageError, FormatError, ModelError) as error:
        before = f" (recorded before it: {', '.join(recorded)})" if recorded else ""
        raise pytest.UsageError(f"--fv-regen-golden: {error}{before}") from error
