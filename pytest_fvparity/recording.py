"""What `--fv-regen-golden` does: record the reference for every trials file of the run, and say what changes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from fvcore.formats import FormatError
from fvcore.gates import StageError
from pytest_fvparity.fixtures import recording_settings
from pytest_fvparity.options import ParityOptions


def record_goldens(config: pytest.Config, options: ParityOptions, files: Sequence[Path]) -> None:
    """Record and swap in one golden per file; any refusal ends the run with its reason and changes nothing."""
    if not files:
        raise pytest.UsageError("--fv-regen-golden: no parity stage is selected, so there is nothing to record")
    from fvcore import models, trials
    from fvcore.models import ModelError
    from fvcore.prompts import require_verified
    from pytest_fvparity import golden, reference

    terminal = config.pluginmanager.get_plugin("terminalreporter")
    try:
        lm = models.load(options.model, "cpu", options.dtype, options.attn, options.seed)
        for file in files:
            fixed = trials.read(file)
            require_verified(fixed, lm.tokenizer)
            settings = recording_settings(options)
            settings.require_fit(lm)
            path = (options.golden or options.rootdir / "golden") / golden.relative_path(
                fixed.dataset, fixed.id, options.reference_profile
            )
            done = golden.regenerate(
                lambda fixed=fixed, settings=settings: reference.run(  # type: ignore[misc]
                    options.src, lm, fixed, settings, options.src_python
                ),
                path,
            )
            if terminal is not None:
                terminal.write_line(f"fvparity: recorded {done.path} twice, byte for byte the same")
                for key, change in done.changes.items():
                    terminal.write_line(f"  {key:<18}{change}")
    except (StageError, FormatError, ModelError) as error:
        raise pytest.UsageError(f"--fv-regen-golden: {error}") from error
