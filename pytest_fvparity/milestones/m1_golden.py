"""M1: the golden, and the three files of the reference's own run."""

from fvcore.artifacts import tensor_leaf
from fvcore.experiments.plan_files import ReferenceFiles
from pytest_fvparity.golden.layout import export
from pytest_fvparity.milestones.setup import Failed, MilestoneOutcome, Setup
from pytest_fvparity.parity.implementation import CHECK_KEYS


def run(setup: Setup) -> MilestoneOutcome:
    """Record with `--fv-src`; without it the golden that is there already counts."""
    how = "taken from"
    if setup.src is not None:
        options = ["--fv-regen-golden", f"--fv-golden={setup.layout.goldens}", *setup.recording()]
        report = setup.parity(setup.layout.runs / "m1", options, CHECK_KEYS[:2])
        if any(check.status != "PASS" for check in report.checks):
            raise Failed(f"the new golden does not hold the words of these trials: {report.headline}")
        how = "recorded as"
    golden = setup.require_golden()
    ranks = {"mean_activations": 4, "cie": 3 if golden.profile.identity.token_class_idx == -1 else 4}
    leaves = {**golden.stored("mean_activations"), **golden.stored("top_heads")}
    for leaf, rank in ranks.items():
        if (found := tensor_leaf(leaves, leaf).ndim) != rank:
            raise Failed(f"{golden.path}: {leaf} has rank {found}, expected {rank}")
    names = ReferenceFiles.of(setup.fixed.dataset)
    files = export(golden.path, setup.layout.results, (names.means, names.labels, names.effect))
    recorded = golden.manifest.reference
    message = f"{how} {golden.path} ({recorded.origin}, commit {recorded.commit[:12]}): {len(files)} files"
    return MilestoneOutcome(True, message, files)
