"""The public fixtures: model, trials, golden, candidate and profile, for the stages and for anybody's own tests.

Nothing else loads them. A user who overrides one in a conftest.py changes what the stages run on.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import pytest

from fvcore.gates import StageError
from pytest_fvparity.options import OPTIONS_KEY, ParityOptions
from pytest_fvparity.parity.custody import nothing_left_by_factory
from pytest_fvparity.suite.declaration import FILES_KEY
from pytest_fvparity.suite.item import NoDevice, StageItem
from pytest_fvparity.suite.scheduler import PLACE

if TYPE_CHECKING:
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings
    from fvcore.profile import Profile
    from fvcore.trials.fixed import FixedTrials
    from pytest_fvparity.bundle.keeping import Keeper
    from pytest_fvparity.golden.golden import Golden
    from pytest_fvparity.parity.implementation import Implementation
    from pytest_fvparity.parity.noise import Noise
    from pytest_fvparity.parity.tolerances import Tolerances

Made = TypeVar("Made")

# What is expensive and belongs to one trials file is kept for the session, by its path; by stages, which go file by file
# and may have hundreds, of the last few.
MOST_KEPT = 12  # trials, golden and candidate of four files
CACHE_KEY = pytest.StashKey[dict[tuple[str, ...], Any]]()

RECORDING_DEFAULTS = {"edit_layer": 9, "n_top_heads": 10, "token_class_idx": -1}
"""The plan's, of models that have ten layers and ten heads; `recording_defaults` are those of any model."""

# Below this size one CPU thread is faster than two, and several pools of spinning threads are far slower.
SMALL_MODEL = 50_000_000


def options_of(request: pytest.FixtureRequest) -> ParityOptions:
    return request.config.stash[OPTIONS_KEY]


def _cached(request: pytest.FixtureRequest, make: Callable[[], Made], *key: str) -> Made:
    """What `make` makes, kept for the session by its key; what it raises is not kept."""
    cache = request.config.stash.setdefault(CACHE_KEY, {})
    cache[key] = cache.pop(key) if key in cache else make()
    forgets = isinstance(request.node, StageItem) and not options_of(request).live  # recording anew takes minutes
    while forgets and len(cache) > MOST_KEPT:
        del cache[next(iter(cache))]
    return cast("Made", cache[key])


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Bad input says what is wrong in one sentence; a traceback would bury it."""
    from fvcore.formats import FormatError
    from fvcore.model.spec import ModelError

    try:
        yield
    except (FormatError, ModelError) as error:
        raise StageError(str(error)) from error


@pytest.fixture(scope="session")
def fv_model(request: pytest.FixtureRequest) -> Iterator[LanguageModel]:
    """The `LanguageModel` of --fv-model, loaded once a session in eval mode, fp32 on the CPU by default."""
    import torch

    options = options_of(request)
    device = device_of(request, options)
    lm = load_model(options, device)
    before = torch.get_num_threads()
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if device == "cpu" and (worker or sum(p.numel() for p in lm.hf.parameters()) < SMALL_MODEL):
        torch.set_num_threads(1)
    yield lm
    torch.set_num_threads(before)


def load_model(options: ParityOptions, device: str) -> LanguageModel:
    """The model that the options name, as they say. Every one of them counts: a spec's own defaults are left."""
    from fvcore.model import model as models

    with warnings.catch_warnings():  # what is doubtful stands among the conditions, whatever becomes of warnings here
        warnings.simplefilter("ignore", models.ModelWarning)
        return models.load(options.model, **loading(options, device))


def loading(options: ParityOptions, device: str) -> dict[str, Any]:
    """How the options have a model loaded, as plain values."""
    how = {name: getattr(options, name) for name in ("spec", "dtype", "attn", "seed", "quant")}
    return how | ({"device": device} if options.device_map is None else {"device_map": options.device_map})


def device_of(request: pytest.FixtureRequest, options: ParityOptions) -> str:
    """The device to run on; at place k a worker takes GPU k mod n. Without CUDA a GPU run is skipped, or fails."""
    if options.device == "cpu":
        return "cpu"
    import torch

    if options.device == "auto" and not torch.cuda.is_available() and not options.require_gpu:
        return "cpu"
    if not torch.cuda.is_available():
        if options.require_gpu:
            raise StageError("--fv-require-gpu: this machine has no CUDA device")
        raise NoDevice(
            f"--fv-device {options.device}: no CUDA device on this machine (--fv-require-gpu makes this a failure)"
        )
    # Not the worker's number: one that replaces a dead gw0 is gw4, and must not join a living worker on its GPU.
    place: int = getattr(request.config, "workerinput", {}).get(PLACE, 0)
    return options.device if ":" in options.device else f"cuda:{place % torch.cuda.device_count()}"


@pytest.fixture
def fv_trials(request: pytest.FixtureRequest) -> FixedTrials:
    """The `FixedTrials` of a stage's own file; in any other test, one run per --fv-trials file."""
    from fvcore.trials.sampled import read_trials

    path = _trials_path(request)
    return _cached(request, partial(read_trials, path), "trials", str(path))


def _trials_path(request: pytest.FixtureRequest) -> Path:
    if not isinstance(request.node, StageItem):
        return cast("Path", request.param)
    files = trials_files(request.config)
    if request.node.path.resolve() in files:
        return request.node.path
    if len(files) > 1:
        raise StageError(
            f"fixture fv_trials: {len(files)} trials files are given, and a suite takes one: --fv-trials=FILE"
        )
    return files[0]


def trials_files(config: pytest.Config) -> list[Path]:
    """Of this run, or those that the options name: one for every test that asks for `fv_trials`."""
    options, selected = config.stash[OPTIONS_KEY], config.stash[FILES_KEY].items()
    judged = [path for path, file in selected if file.suite.name == "parity"]
    return sorted(judged or options.trials) or [options.default_trials(config)]


@pytest.fixture
def fv_check_key(request: pytest.FixtureRequest) -> str:
    """Runs the test once for each of the six check keys, in order."""
    return cast("str", request.param)


@pytest.fixture
def fv_golden(request: pytest.FixtureRequest, fv_model: LanguageModel, fv_trials: FixedTrials) -> Golden:
    """The `Golden` of these trials: read from disk with every hash checked, or with --fv-live recorded now."""
    options = options_of(request)
    find = partial(_live, request, fv_model) if options.live else partial(_recorded, options, fv_model)
    named = (fv_trials.id, fv_trials.sha256, fv_model.weights_sha)
    return _cached(request, partial(find, fv_trials), "golden", *named)


def _recorded(options: ParityOptions, lm: LanguageModel, trials: FixedTrials) -> Golden:
    """The golden on disk; its full tier is fetched if that was asked for."""
    from pytest_fvparity.golden.golden import Golden, locate, relative_path

    usual = relative_path(trials.dataset, trials.id, options.reference_profile)
    model, trials_file = options.model_words[0], [] if trials.path is None else [options.shown(trials.path)]
    named = [f"--fv-model={model}", *(f"--fv-trials={path}" for path in trials_file)]
    path = locate(options.golden_roots, usual, lm.weights_sha, named)
    if options.golden_fetch:
        from pytest_fvparity.golden.tiers import fetch

        fetch(path)
    return Golden.open(path)


def _live(request: pytest.FixtureRequest, lm: LanguageModel, trials: FixedTrials) -> Golden:
    from pytest_fvparity.golden import golden
    from pytest_fvparity.reference import progress, reference

    options = options_of(request)
    scratch = tempfile.TemporaryDirectory(prefix="fvparity-live-")
    request.config.add_cleanup(scratch.cleanup)
    settings, words_only = settings_of(options, recording_defaults(lm)), _words_alone(request)
    advance = progress.shown(request.config, f"the reference runs {trials.id}")
    how: dict[str, Any] = {"words_only": words_only, "advance": advance}
    recording = reference.run(options.src, lm, trials, settings, options.src_python, **how)
    golden.write(recording, Path(scratch.name))
    return golden.Golden.open(Path(scratch.name))


WORDS = {"prompt_boundary", "slot_map"}
"""Keys that the reference needs no pass of its model for."""


def _words_alone(request: pytest.FixtureRequest) -> bool:
    """Whether nobody in this session can ask for more than prompts and slots."""
    items = request.session.items
    return all(isinstance(i, StageItem) and i.collector.suite.name == "parity" and i.name in WORDS for i in items)


def recording_defaults(lm: LanguageModel) -> dict[str, int]:
    """The plan's; of a model that has no such layer a third of its depth, and never more heads than there are."""
    small = {"edit_layer": lm.n_layers // 3} if lm.n_layers <= RECORDING_DEFAULTS["edit_layer"] else {}
    return {**RECORDING_DEFAULTS, **small, "n_top_heads": min(RECORDING_DEFAULTS["n_top_heads"], len(lm.heads))}


def chosen_for(lm: LanguageModel, options: ParityOptions) -> str:
    """What a recording takes in place of the plan's defaults, in words; nothing where it takes those."""
    given = {"edit_layer": options.edit_layer, "n_top_heads": options.top_heads}
    own = {name: value for name, value in recording_defaults(lm).items() if value != RECORDING_DEFAULTS[name]}
    layer = f"edit layer {own.get('edit_layer')}, a third of {lm.n_layers} layers (--fv-edit-layer)"
    top = f"{own.get('n_top_heads')} top heads, all there are (--fv-top-heads)"
    said = {"edit_layer": layer, "n_top_heads": top}
    return "; ".join(words for name, words in said.items() if name in own and given[name] is None)


def settings_of(options: ParityOptions, defaults: Mapping[str, int]) -> Settings:
    """The options, then `defaults`."""
    from fvcore.pipeline import Settings

    given = {"edit_layer": options.edit_layer, "n_top_heads": options.top_heads, "token_class_idx": options.token_class}
    chosen: dict[str, Any] = {**defaults, **{name: value for name, value in given.items() if value is not None}}
    chosen |= {name: getattr(options, name) for name in ("reference_profile", "engine", "max_memory")}
    return Settings(**chosen)


def run_settings(request: pytest.FixtureRequest, trials: FixedTrials) -> Settings:
    """Settings of a comparison: the options, then those of this model's golden, then the plan's defaults."""
    from pytest_fvparity.golden.golden import NoGolden

    options = options_of(request)
    lm: LanguageModel = request.getfixturevalue("fv_model")
    defaults = recording_defaults(lm)
    if options.live:
        return settings_of(options, defaults)
    find = partial(_recorded, options, lm, trials)
    with suppress(NoGolden):
        recorded = _cached(request, find, "golden", trials.id, trials.sha256, lm.weights_sha)
        if recorded.is_of(lm):
            defaults = {name: getattr(recorded.profile.identity, name) for name in RECORDING_DEFAULTS}
    return settings_of(options, defaults)


@pytest.fixture
def fv_candidate(request: pytest.FixtureRequest, fv_model: LanguageModel, fv_trials: FixedTrials) -> Implementation:
    """The implementation under test: what an option names, else what hook `pytest_fvparity_candidate` returns."""
    settings = run_settings(request, fv_trials)
    settings.require_fit(fv_model)

    def make() -> Implementation:
        with nothing_left_by_factory(fv_model):
            return _candidate(request, fv_model, deepcopy(fv_trials), settings)  # whose lists it may sort

    return _cached(request, make, "candidate", fv_trials.id, fv_trials.sha256, str(id(fv_model)))


def _candidate(
    request: pytest.FixtureRequest, lm: LanguageModel, trials: FixedTrials, settings: Settings
) -> Implementation:
    from pytest_fvparity.candidates import candidates

    options = options_of(request)
    if options.candidate_dir is not None:
        return candidates.FromFolder(options.candidate_dir)
    if options.candidate is None:
        return _by_hook(request.config.hook.pytest_fvparity_candidate, lm, trials, settings)
    if options.candidate_python is None and not options.isolate:
        return candidates.from_factory(options.candidate, options.beside, lm, trials, settings)
    python, how = options.candidate_python or sys.executable, None
    if options.isolate:
        how = loading(options, device_of(request, options))
    candidate = candidates.Elsewhere(
        python, options.candidate, options.beside, lm, trials, settings, options.candidate_timeout, how
    )
    request.config.add_cleanup(candidate.close)
    return candidate


def _by_hook(hook: Any, lm: LanguageModel, trials: FixedTrials, settings: Settings) -> Implementation:
    """What a hook of the user's answers; fvcore's own pipeline if there is no such hook, and never if it answers None."""
    from pytest_fvparity.candidates.candidates import required
    from pytest_fvparity.candidates.itself import NoCandidate

    if not (asked := hook.get_hookimpls()):
        return NoCandidate(lm, trials, settings)
    names = ", ".join(impl.plugin_name for impl in asked)
    return required(hook(lm=lm, trials=trials, settings=settings), f"hook pytest_fvparity_candidate of {names}")


@pytest.fixture
def fv_profile(request: pytest.FixtureRequest, fv_model: LanguageModel, fv_trials: FixedTrials) -> Profile:
    """The `Profile` of this run: identity and conditions, measured from what was loaded."""
    from fvcore.pipeline import profile_of

    settings = run_settings(request, fv_trials)
    settings.require_fit(fv_model)
    return profile_of(fv_model, fv_trials, settings)


def require_readable(
    request: pytest.FixtureRequest, lm: LanguageModel, trials: FixedTrials, settings: Settings
) -> None:
    """Raise what is wrong with these trials for this model, its tokenizer and its room; asked once a session."""
    from fvcore.pipeline import Pipeline
    from fvcore.prompts import require_verified

    def ask() -> bool:
        require_verified(trials, lm.tokenizer)
        Pipeline(lm, trials, settings).require_room()
        return True

    _cached(request, ask, "readable", trials.id, trials.sha256, str(id(lm)))


def tolerances_of(
    request: pytest.FixtureRequest, dtype: str, device: str, noise: Noise | None = None, processor: str = "not recorded"
) -> Tolerances:
    """The rules in force: those that hooks added, those of --fv-tolerances or the defaults, and the golden's noise.

    processor: how the golden's stands to this run's, `Profile.processor_against`
    """
    from pytest_fvparity.parity.tolerances import Tolerances

    added = request.config.pluginmanager.hook.pytest_fvparity_tolerances(dtype=dtype, device=device)
    rules = [rule for rules in added for rule in rules or ()]
    return Tolerances.read(options_of(request).tolerances, rules, dtype, device, noise, processor)


def keeper_of(
    request: pytest.FixtureRequest, trials: FixedTrials, profile: Profile, golden: Profile, candidate: str
) -> Keeper | None:
    """What writes a failure into a file, if that is asked for: where a report of these trials would lie."""
    options = options_of(request)
    if options.bundle is None:
        return None
    from pytest_fvparity.bundle.keeping import Keeper
    from pytest_fvparity.parity.place import under_of

    model = request.config.getoption("fv_model")
    under = under_of(options.report_dir, request.node.path, options.reference_profile, model)
    folder = options.bundle.joinpath(trials.dataset, trials.id, under)
    return Keeper(folder, trials, profile, golden, candidate)
