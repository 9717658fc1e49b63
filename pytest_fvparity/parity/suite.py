"""The suite `parity`: a trials file is a test file, and its six stages judge a candidate beside a golden."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest

from fvcore.gates import StageError, Suite
from pytest_fvparity.fixtures import (
    device_of,
    in_one_sentence,
    keeper_of,
    load_model,
    options_of,
    require_readable,
    run_settings,
    tolerances_of,
)
from pytest_fvparity.libraries import import_large
from pytest_fvparity.parity.checks import STAGES, Memory
from pytest_fvparity.parity.implementation import LIVE
from pytest_fvparity.parity.place import title_of
from pytest_fvparity.parity.reports import NAME, ParityReports
from pytest_fvparity.parity.words import lines
from pytest_fvparity.suite.declaration import Declaration
from pytest_fvparity.suite.item import StageItem

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.profile import Profile
    from fvcore.trials.fixed import FixedTrials
    from pytest_fvparity.golden.golden import Golden
    from pytest_fvparity.parity.checks import ParityRun


def parity_suite() -> Suite[ParityRun]:
    return Suite(NAME, STAGES, lambda fv_parity_run: fv_parity_run)


PARITY = Declaration(
    NAME,
    "a stage of the parity suite, or a test that belongs to it",
    title=title_of,
    option=lambda path: f"--fv-trials={path}",
    reports=ParityReports,
    lines=lines,
)


def parity_stages(session: pytest.Session) -> list[StageItem]:
    """Of every trials file of a session."""
    stages = [item for item in session.items if isinstance(item, StageItem)]
    return [item for item in stages if item.collector.file and item.collector.file.declared is PARITY]


_MEMORY_KEY = pytest.StashKey[Memory]()


@pytest.fixture
@in_one_sentence()
def fv_parity_run(request: pytest.FixtureRequest) -> ParityRun:
    """What the stages of one trials file judge: both sides and the tolerances. For stages only.

    The suite's `context` is filled on the way with what the report says about the run.
    """
    import_large()
    from pytest_fvparity.candidates.candidates import name_of, required
    from pytest_fvparity.candidates.whereabouts import whereabouts
    from pytest_fvparity.parity.at_hand import continuation_of, log_effects_of
    from pytest_fvparity.parity.checks import ParityRun
    from pytest_fvparity.parity.conditions import conditions

    collector = request.node.collector
    context: dict[str, Any] = collector.context
    options = options_of(request)
    trials: FixedTrials = request.getfixturevalue("fv_trials")
    n = len(trials.trials)
    context |= {"dataset": trials.dataset, "fixed_trials_id": trials.id, "n_trials": n}
    lm: LanguageModel = request.getfixturevalue("fv_model")
    context |= {"model": lm.name, "n_layers": lm.n_layers, "n_heads": lm.n_heads}
    settings = run_settings(request, trials)
    require_readable(request, lm, trials, settings)
    if (options.max_trials or 0) > n:
        raise StageError(f"--fv-max-trials {options.max_trials}: {trials.id} has {n} trials; ask for 1 to {n}")
    context["n_compared_trials"] = options.max_trials or n
    golden: Golden = request.getfixturevalue("fv_golden")
    context["golden"] = golden.profile.model_dump()
    context["golden_path"] = LIVE if options.live else options.shown(golden.path)
    context["reference"] = golden.manifest.reference.model_dump(include={"commit", "repository"})
    profile: Profile = request.getfixturevalue("fv_profile")
    context["profile"] = profile.model_dump()
    paths = {"trials": options.shown(trials.path)} if trials.path else {}
    context["conditions"] = conditions(golden.profile, profile, lm, options.model_words, **paths)
    candidate = required(request.getfixturevalue("fv_candidate"), "fixture fv_candidate")
    context["candidate"] = name_of(candidate, options.shown)
    context["whereabouts"] = whereabouts(candidate, options.rootdir, options.shown)
    # A golden of a user's own make may know no noise.
    noise = getattr(golden, "noise", None)
    processor = golden.profile.processor_against(profile)
    tolerances = tolerances_of(request, profile.identity.dtype, profile.conditions.device, noise, processor)
    context["tolerances"] = list(tolerances.sources)
    memory = collector.stash.setdefault(_MEMORY_KEY, Memory())
    continuation = continuation_of(lm, golden, settings)
    # What --fv-model names, loaded once more: nobody has had that model in hand, whatever fixture `fv_model` returns.
    fresh = partial(load_model, options, device_of(request, options)) if options.drill else None
    return ParityRun(
        candidate,
        golden,
        tolerances,
        options.max_trials,
        memory,
        model=lm.hf,
        log_effects=log_effects_of(lm, golden, settings, tolerances),
        tokenizer=lm.tokenizer,
        continuation=continuation,
        reference=fresh,
        repeat=options.repeat,
        keep=keeper_of(request, trials, profile, golden.profile, context["candidate"]),
    )
