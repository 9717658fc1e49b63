"""A session that ends before it begins: a conftest.py fails while it is read, and no hook of a session is ever called.

What it would have judged is no longer what the reports of the last session say.
"""

from typing import Any

import pytest

from pytest_fvparity.options import OPTIONS_KEY, ParityOptions
from pytest_fvparity.selection import select
from pytest_fvparity.suite.declaration import FILES_KEY
from pytest_fvparity.suite.reporter import SuiteReporter


def take_back(config: pytest.Config) -> bool:
    """Take away the reports of what this command line names, if it names anything; `config` has not read it in full."""
    known: Any = config.known_args_namespace
    if known.help or known.version or hasattr(config, "workerinput"):
        return False
    config.option, config.args = known, list(known.file_or_dir)
    options = config.stash[OPTIONS_KEY] = ParityOptions.from_config(config)
    files = config.stash[FILES_KEY] = select(config, options)
    reporter = SuiteReporter(config)
    if judged := bool(files) and reporter.judges and not options.golden_diff:
        reporter.take_back()
    return judged
