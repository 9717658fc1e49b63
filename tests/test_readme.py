"""What the first page names is there; that its blocks run is test_pages' to say."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_options_shown_are_options_there_are() -> None:
    from pytest_fvparity.options import OPTIONS

    shown = set(re.findall(r"--fv-[a-z-]*[a-z]", (ROOT / "README.md").read_text()))
    assert shown <= {option.flag for option in OPTIONS}
