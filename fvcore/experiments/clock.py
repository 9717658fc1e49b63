"""The time that a file says it was made at."""

from __future__ import annotations

import os
from datetime import UTC, datetime


def now() -> str:
    """UTC, to the microsecond; the moment `SOURCE_DATE_EPOCH` names (seconds) where it is set, so that bytes can be compared."""
    fixed = os.environ.get("SOURCE_DATE_EPOCH")
    at = datetime.now(UTC) if fixed is None else datetime.fromtimestamp(int(fixed), UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
