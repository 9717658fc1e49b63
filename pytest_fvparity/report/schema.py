"""Writes the published schema of the report: `python -m pytest_fvparity.report.schema docs/report.schema.json`."""

import sys
from pathlib import Path
from typing import Any

from fvcore.formats import json_text, write_text
from pytest_fvparity.report.report import SCHEMA_VERSION, Report


def report_schema() -> dict[str, Any]:
    """JSON Schema of `src_vs_fv_diff_report.json`."""
    dialect = {"$schema": "https://json-schema.org/draft/2020-12/schema", "version": SCHEMA_VERSION}
    return dialect | Report.model_json_schema()


if __name__ == "__main__":
    write_text(Path(sys.argv[1]), json_text(report_schema()) + "\n")
