"""The suite `audit`: a config of pathways is a test file, and its stages are what the data that it names is audited for.

Node ids read `<config>.yaml::audit::<check>`. The data is read once, and every check is judged.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from fvcore.formats import FormatError
from fvcore.gates import Suite
from pytest_fvparity.fixtures import in_one_sentence, options_of
from pytest_fvparity.report.checks import CheckReports
from pytest_fvparity.suite.declaration import Declaration

if TYPE_CHECKING:
    from fvcore.experiments.sae.schemas import Validation

SUITE = "audit"


def audit_suite() -> Suite[Validation]:
    from fvcore.experiments.sae.gates import suite

    return suite(lambda fv_audit_validation: fv_audit_validation)


def config_file(given: Path | None) -> Path:
    """The config that is a test file; raises FormatError where there is none."""
    if given is None:
        raise FormatError("-m audit needs a config of `fvcore pathways`, which names checkpoints and response logs")
    if not given.is_file():
        raise FormatError(f"{given}: no such file; expected a config of `fvcore pathways`")
    return given


class AuditReports(CheckReports):
    """A report for each config, beside the audit itself."""

    suite, heading, about = SUITE, "audit", " of the data"

    @staticmethod
    def title(file: Path) -> str:
        return file.stem


AUDIT = Declaration(
    SUITE,
    "a check of the data of pathways",
    title=AuditReports.title,
    option=lambda path: f"--fv-audit={path}",
    reports=AuditReports,
)

_KEY: pytest.StashKey[Validation] = pytest.StashKey()


@pytest.fixture
@in_one_sentence()
def fv_audit_validation(request: pytest.FixtureRequest) -> Validation:
    """What the checks judge: an audit of the data that the config names, kept beside the report. For stages only."""
    from fvcore.experiments.config import resolve
    from fvcore.experiments.sae.audit import audit
    from fvcore.experiments.sae.config import PathwaysConfig
    from fvcore.formats import write_json

    collector = request.node.collector
    found: Validation | None = collector.stash.get(_KEY, None)
    if found is None:
        options, folder = options_of(request), AuditReports.folder_of(options_of(request), collector.path)
        found = collector.stash[_KEY] = audit(resolve(PathwaysConfig, {}, collector.path))
        write_json(folder / "data_validation.json", found.model_dump(mode="json"))
        collector.context["folder"] = options.shown(folder)
    return found
