"""The plan's folder for an experiment: a config, a script that starts it, and its seven source files as short callers."""

from pathlib import Path

from fvcore.experiments.config import ConfigError
from fvcore.experiments.sae.config import PathwaysConfig
from fvcore.formats import write_text

CALLERS = {
    "step0_data_audit.py": ("audit", "Every checkpoint and every response log is read to its end."),
    "step1_load_causal_features.py": ("load", "The strongest causal features of each layer, and the contexts."),
    "step2_pathway_prototype.py": ("prototype", "One feature from end to end, with its checks."),
    "step3_pathway_discovery.py": ("discover", "Which features cause which, by gradients and by replay."),
    "step4_token_association.py": ("tokens", "Which tokens go with which features."),
    "step5_integrate_results.py": ("integrate", "Chains, tokens and graphs of what was found."),
    "orchestrator.py": ("run", "All steps in order, with gates between them."),
}
"""File -> its command, and what it does."""

CALLER = '''"""{said} Takes the options of `fvcore pathways {command}`."""

import os
import sys
from pathlib import Path

from fvcore.cli import main

if __name__ == "__main__":
    os.chdir(Path(__file__).parents[1])
    sys.argv = ["fvcore", "pathways", "{command}", "--config", "config.yaml", *sys.argv[1:]]
    main()
'''

LAUNCH = """#!/usr/bin/env bash
# All steps; with options, those of `fvcore pathways run`.
set -euo pipefail
exec "${PYTHON:-python}" "$(dirname "$0")/src/orchestrator.py" "$@"
"""

LAUNCH_NAME, CONFIG = "launch.sh", "config.yaml"


def write(root: Path) -> list[Path]:
    """Write the folder; returns its files. Raises ConfigError where one of them is there already."""
    settings = PathwaysConfig.model_validate({"paths": {"out": Path()}})
    texts = {CONFIG: settings.text(), LAUNCH_NAME: LAUNCH} | {
        f"src/{name}": CALLER.format(command=command, said=said) for name, (command, said) in CALLERS.items()
    }
    if there := [name for name in texts if (root / name).exists()]:
        raise ConfigError(f"{root / there[0]} is there already: name another folder, or remove it")
    for name, text in texts.items():
        write_text(root / name, text)
    (root / LAUNCH_NAME).chmod(0o755)
    return [root / name for name in texts]
