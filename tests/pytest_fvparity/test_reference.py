"""The driver of the reference, on a stand-in for its checkout: what it changes, what it records, what it refuses."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from fvcore.embedded.random_models import random_lm, trials_for
from fvcore.model.spec import MODEL_SPECS
from fvcore.profile import REFERENCE_PROFILES
from fvcore.trials.fixed import FixedTrials
from pytest_fvparity import fixtures
from pytest_fvparity.reference import driver, progress
from tests.late import RUNNING
from tests.slow import slow_but

if RUNNING:
    import torch

    from fvcore.artifacts import Artifact, tensor_leaf
    from fvcore.compare import EXACT, Tolerance, compare
    from fvcore.model import model as models
    from fvcore.model.model import LanguageModel
    from fvcore.pipeline import Settings, profile_of, run
    from pytest_fvparity.parity.at_hand import effects_in_both
    from pytest_fvparity.parity.implementation import INPUTS
    from pytest_fvparity.parity.partial import FURTHER
    from pytest_fvparity.reference import reference
    from pytest_fvparity.reference.reference import Recording, RecordingError
    from tests.pytest_fvparity.stand_in import digests, imported_for_a_while, plant, saved, saved_trials, start_here


if RUNNING:
    SRC = Settings(edit_layer=1, n_top_heads=3, engine="exact")
    UPSTREAM = replace(SRC, reference_profile="todd_upstream")

# What a pristine checkout needs before it behaves as a profile says. Stand-ins for missing modules come on top.
APPLIED = {
    "src": [
        "injection_edits_bare_tensors",
        "bos_from_tokenizer_only",
        "injection_casts_vector",
        "effect_uses_stored_target",
    ],
    "todd_upstream": ["injection_edits_bare_tensors"],
}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As in the reference's process."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    """family -> a tiny random model of it, loaded from disk."""
    return cache(lambda family: saved(family, tmp_path_factory.mktemp(family)))


@pytest.fixture
def llama(model: Callable[[str], LanguageModel]) -> LanguageModel:
    return model("llama")


@pytest.fixture
def fixed(llama: LanguageModel, tmp_path: Path) -> FixedTrials:
    return saved_trials(llama, tmp_path)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver without a process of its own, which takes seconds to start; what the process adds is tested apart."""

    monkeypatch.setattr(reference, "_start", start_here)


@contextmanager
def checkout_at(root: Path) -> Iterator[driver.Checkout]:
    with imported_for_a_while():
        driver.provide_modules()
        yield driver.Checkout.at(root)


def recorded_leaves(recording: Recording) -> dict[str, Artifact]:
    """What a recording says when it is asked as an Implementation, of what an implementation has to say."""
    said = {key: getattr(recording, key)() for key in recording.artifacts}
    return {key: {leaf: value for leaf, value in of.items() if leaf not in FURTHER} for key, of in said.items()}


def differences(
    expected: dict[str, Artifact], actual: dict[str, Artifact], tolerance: Tolerance | None = None
) -> list[str]:
    assert list(expected) == list(actual)
    found = [f for key in expected for f in compare(expected[key], actual[key], tolerance or EXACT).findings]
    return [f"{finding.where}: {finding.message}" for finding in found]


# ---------------------------------------------------------------- normalisations

NORMALISATIONS: dict[str, Callable[[driver.Checkout, Any], driver.Normalisation]] = {
    "injection_edits_bare_tensors": lambda src, _: driver.injection_edits_bare_tensors(src),
    "injection_casts_vector": lambda src, _: driver.injection_casts_vector(src),
    "bos_from_tokenizer_only": lambda src, _: driver.bos_from_tokenizer_only(src),
    "effect_uses_stored_target": lambda src, tokenizer: driver.StoredTarget().normalisation(src, tokenizer),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_a_normalisation_changes_a_pristine_checkout_and_is_listed(
    name: str, llama: LanguageModel, tmp_path: Path
) -> None:
    with checkout_at(plant(tmp_path)) as src:
        normalisation = NORMALISATIONS[name](src, llama.tokenizer)

        assert not normalisation.holds()
        assert driver.normalise([normalisation]) == {"applied": [name], "already": []}
        assert normalisation.holds()


@pytest.mark.parametrize("name", ["injection_edits_bare_tensors", "injection_casts_vector", "bos_from_tokenizer_only"])
def test_a_normalisation_is_not_applied_where_the_checkout_behaves_so_already(name: str, tmp_path: Path) -> None:
    with checkout_at(plant(tmp_path, "modified")) as src:
        functions = src.add_function_vector, src.word_pairs_to_prompt_data

        assert driver.normalise([NORMALISATIONS[name](src, None)]) == {"applied": [], "already": [name]}
        assert (src.add_function_vector, src.word_pairs_to_prompt_data) == functions


def test_a_normalisation_without_effect_is_refused() -> None:
    idle = driver.Normalisation("idle", holds=lambda: False, apply=lambda: None)

    with pytest.raises(driver.RecordingRefused, match="normalisation idle was applied and has no effect"):
        driver.normalise([idle])


def test_generation_is_made_greedy_whatever_the_model_ships_with() -> None:
    from transformers import GenerationConfig

    own = GenerationConfig(
        do_sample=True, repetition_penalty=1.05, min_new_tokens=3, eos_token_id=[2, 5], pad_token_id=0
    )
    sampling = SimpleNamespace(generation_config=own)

    for listed in ("applied", "already"):
        assert driver.normalise([driver.greedy_generation(sampling)])[listed] == ["greedy_generation"]
    left = sampling.generation_config
    assert not left.do_sample
    assert (left.repetition_penalty, left.min_new_tokens) == (GenerationConfig().repetition_penalty, None)
    assert (left.eos_token_id, left.pad_token_id) == ([2, 5], 0)


def test_a_function_is_replaced_in_every_module_that_holds_it(tmp_path: Path) -> None:
    with checkout_at(plant(tmp_path)) as src:
        holders = {module.__name__ for module in src.modules if hasattr(module, "get_answer_id")}
        original = src.get_answer_id
        src.wrap("get_answer_id", lambda given, *_: given)
        answers = {module.__name__: module.get_answer_id("a") for module in src.modules if module.__name__ in holders}
        replaced = {name for name, answer in answers.items() if answer is original}

    assert replaced == holders == {"utils.eval_utils", "utils.extract_utils", "compute_indirect_effect"}


def test_the_stored_target_counts_for_effects_alone(llama: LanguageModel, tmp_path: Path) -> None:
    stored = driver.StoredTarget()
    with checkout_at(plant(tmp_path)) as src:
        stored.normalisation(src, llama.tokenizer).apply()
        own = src.get_answer_id("Q: a\nA:", " hot", llama.tokenizer)
        with stored.of(5):
            assert src.get_answer_id("Q: a\nA:", " hot", llama.tokenizer) == [5]

        assert src.get_answer_id("Q: a\nA:", " hot", llama.tokenizer) == own != [5]


# ---------------------------------------------------------------- recording


def test_the_reference_is_sent_to_the_models_own_device(
    llama: LanguageModel, fixed: FixedTrials, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LanguageModel, "device", torch.device("cuda:1"))
    assert reference._job(Path("src"), llama, fixed, SRC)["device"] == "cuda:1"


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("profile", REFERENCE_PROFILES)
@pytest.mark.parametrize("family", slow_but(["gpt2"], ["gpt2", "gptj", "gpt_neox", "llama", "mistral"]))
def test_what_is_recorded_is_what_fvcore_computes(
    family: str, profile: str, model: Callable[[str], LanguageModel], tmp_path: Path
) -> None:
    lm, settings = model(family), replace(SRC, reference_profile=profile)
    trials = saved_trials(lm, tmp_path)

    recording = reference.run(plant(tmp_path), lm, trials, settings)

    assert differences(recorded_leaves(recording), run(lm, trials, settings), Tolerance(atol=1e-6)) == []
    prompts, slots, means = (recording.artifacts[key] for key in INPUTS["top_heads"])
    in_probability, in_logprob = effects_in_both(lm, prompts, slots, means, settings)
    pair = {"cie": in_probability, "cie_logprob": in_logprob, "aie_logprob": in_logprob.mean(dim=0)}
    recorded = {leaf: recording.artifacts["top_heads"][leaf] for leaf in pair}
    assert compare(recorded, pair, Tolerance(atol=1e-6)).passed
    assert recording.profile.identity == profile_of(lm, trials, settings).identity
    normalisations = recording.provenance["normalisations"]
    assert [name for name in normalisations["applied"] if not name.endswith("_stand_in")] == APPLIED[profile]
    assert normalisations["already"] == ["greedy_generation"]


def test_a_process_of_its_own_records_the_same_and_leaves_the_checkout_as_it_was(
    llama: LanguageModel, fixed: FixedTrials, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = plant(tmp_path)
    before = digests(root)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "torch.py").write_text("raise ImportError('found through PYTHONPATH')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "elsewhere"))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)

    shares: list[float] = []
    recording = reference.run(root, llama, fixed, SRC, advance=shares.append)

    assert shares == sorted(shares)
    assert (0 < shares[0] < 1, shares[-1]) == (True, 1)
    assert digests(root) == before
    assert differences(recorded_leaves(recording), run(llama, fixed, SRC), Tolerance(atol=1e-6)) == []
    assert recording.provenance["sources"] == {name: sha for name, sha in before.items() if name.endswith(".py")}
    assert recording.provenance["weights_sha"] == llama.weights_sha
    assert recording.provenance["repository"] == reference.REPOSITORY
    assert recording.provenance["commit"] == "unknown"
    assert recording.profile.conditions == profile_of(llama, fixed, SRC).conditions


@pytest.mark.usefixtures("in_process")
@pytest.mark.slow
def test_only_a_pristine_checkout_writes_a_bos_text(model: Callable[[str], LanguageModel], tmp_path: Path) -> None:
    lm, root = model("gpt2"), plant(tmp_path)
    trials = saved_trials(lm, tmp_path)

    texts = [reference.run(root, lm, trials, s).prompt_boundary()["0:0/clean/text"] for s in (UPSTREAM, SRC)]

    assert texts[0] == f"<|endoftext|>{texts[1]}"


@pytest.mark.usefixtures("in_process")
@pytest.mark.slow
def test_a_stored_target_that_is_another_token_counts_in_the_src_profile_alone(
    llama: LanguageModel, fixed: FixedTrials, tmp_path: Path
) -> None:
    other = fixed.trials[0].target_id + 1
    change = {"target_first_token_id": other, "first_token_id": other, "answer_ids": [other]}
    first = fixed.file.trials[0].model_copy(update=change)
    changed = replace(fixed, file=fixed.file.model_copy(update={"trials": [first, *fixed.file.trials[1:]]}))
    root = plant(tmp_path)

    of_src = reference.run(root, llama, changed, SRC)
    of_upstream = reference.run(root, llama, changed, UPSTREAM)

    assert differences(recorded_leaves(of_src), run(llama, changed, SRC)) == []
    assert differences(recorded_leaves(of_upstream), run(llama, fixed, UPSTREAM)) == []
    effects = torch.stack([tensor_leaf(of.top_heads(), "cie") for of in (of_src, of_upstream)])
    assert [effects[0, trial].equal(effects[1, trial]) for trial in range(2)] == [False, True]


@pytest.mark.usefixtures("in_process")
@pytest.mark.slow
def test_the_effects_of_all_token_classes_are_recorded(model: Callable[[str], LanguageModel], tmp_path: Path) -> None:
    lm, settings = model("gpt2"), replace(SRC, token_class_idx=2)
    trials = saved_trials(lm, tmp_path)

    recording = reference.run(plant(tmp_path), lm, trials, settings)

    cie = tensor_leaf(recording.top_heads(), "cie")
    assert cie.shape == (2, 2, 4, 10)
    assert cie.abs().amax(dim=(0, 1, 2)).all()
    assert differences(recorded_leaves(recording), run(lm, trials, settings), Tolerance(atol=1e-6)) == []


@pytest.mark.usefixtures("in_process")
@pytest.mark.slow
def test_a_checkout_that_behaves_so_already_is_recorded_as_it_is(
    llama: LanguageModel, fixed: FixedTrials, tmp_path: Path
) -> None:
    recording = reference.run(plant(tmp_path, "modified"), llama, fixed, SRC)

    normalisations = recording.provenance["normalisations"]
    # Fixed trials come from outside the checkout, so their stored targets always do too.
    assert [n for n in normalisations["applied"] if not n.endswith("_stand_in")] == ["effect_uses_stored_target"]
    assert sorted(normalisations["already"]) == [
        "bos_from_tokenizer_only",
        "greedy_generation",
        "injection_casts_vector",
        "injection_edits_bare_tensors",
    ]
    assert differences(recorded_leaves(recording), run(llama, fixed, SRC)) == []


def test_a_branch_of_the_reference_is_for_a_family_of_the_table() -> None:
    assert set(reference.BRANCHES) < set(MODEL_SPECS)


def test_the_commit_is_named_only_if_the_checkout_is_the_repository_itself(tmp_path: Path) -> None:
    root = plant(tmp_path)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All"]):
        subprocess.run([*git, *words], check=True)
    commit = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()

    assert reference.commit_of(tmp_path) == commit
    assert reference.commit_of(root) == "unknown"


# ---------------------------------------------------------------- refusals


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("no injection", "injection_edits_bare_tensors was applied and has no effect on this checkout"),
        ("zero vector", "trial 0:0: the injection moved no logit"),
        ("no replacement", "the indirect effect is zero everywhere"),
        ("no activations", "the mean activations are zero everywhere"),
        ("labels shifted", r"0:0/clean: \d+ tokens, \d+ labels, the last one"),
        ("slots merged", r"0:0/clean: the prompt fills \d+ slots, the dummy prompt has \d+"),
        ("fewer trials", "the means asked for 1 trials, there are 2"),
        ("function missing", "the checkout has no function 'get_dummy_token_labels'"),
        ("no checkout", r"is no checkout of the reference \(missing: src/compute_indirect_effect.py\); get one with"),
    ],
)
def test_what_is_not_alive_is_not_recorded(
    variant: str, message: str, llama: LanguageModel, fixed: FixedTrials, tmp_path: Path
) -> None:
    with pytest.raises(RecordingError, match=message):
        reference.run(plant(tmp_path, variant), llama, fixed, SRC)


@pytest.mark.usefixtures("in_process")
def test_a_changed_checkout_is_no_todd_upstream(llama: LanguageModel, fixed: FixedTrials, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="writes no BOS text: it is not pristine, so not `todd_upstream`"):
        reference.run(plant(tmp_path, "modified"), llama, fixed, UPSTREAM)


def test_without_a_checkout_the_way_to_one_is_shown(llama: LanguageModel, fixed: FixedTrials) -> None:
    with pytest.raises(RecordingError, match=re.escape(f"`git clone {reference.REPOSITORY}`")):
        reference.run(None, llama, fixed, SRC)


@pytest.mark.usefixtures("in_process")
def test_heads_that_do_not_fill_the_hidden_state_are_refused(tmp_path: Path) -> None:
    lm = random_lm("qwen3", directory=tmp_path / "qwen3")

    with pytest.raises(RecordingError, match="this model has 4 heads of 12, not 32"):
        reference.run(plant(tmp_path), lm, trials_for(lm), SRC)


def test_a_family_the_reference_does_not_know_is_refused(
    llama: LanguageModel, fixed: FixedTrials, tmp_path: Path
) -> None:
    unknown = replace(llama, spec=llama.spec.changed(name="new_family"))

    with pytest.raises(RecordingError, match="the reference has no branch for 'new_family'; known: gpt2, "):
        reference.run(plant(tmp_path), unknown, fixed, SRC)


def test_a_model_in_memory_is_refused_with_the_way_out(fixed: FixedTrials, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"has none; save it with save_pretrained .* as --fv-model"):
        reference.run(plant(tmp_path), random_lm("llama"), fixed, SRC)


@pytest.mark.usefixtures("in_process")
def test_other_weights_than_those_of_this_process_are_refused(
    llama: LanguageModel, fixed: FixedTrials, tmp_path: Path
) -> None:
    other = saved("llama", tmp_path / "other", seed=1)
    mixed = LanguageModel.wrap(llama.hf, llama.tokenizer, "mixed", other.source)

    with pytest.raises(RecordingError, match=f"the reference loaded other weights from {re.escape(str(other.source))}"):
        reference.run(plant(tmp_path), mixed, fixed, SRC)


@pytest.mark.usefixtures("in_process")
def test_the_dtype_of_this_process_is_the_reference_s_too(
    fixed: FixedTrials, llama: LanguageModel, tmp_path: Path
) -> None:
    half = models.load(str(llama.source), dtype="bf16")

    recording = reference.run(plant(tmp_path), half, fixed, SRC)

    assert recording.profile.identity.dtype == "bf16"
    assert differences(recorded_leaves(recording), run(half, fixed, SRC)) == []


def test_an_interpreter_that_does_not_exist_is_named(llama: LanguageModel, fixed: FixedTrials, tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match=r"cannot start '/no/such/python' \(No such file .*--fv-src-python"):
        reference.run(plant(tmp_path), llama, fixed, SRC, python="/no/such/python")


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ("broken", r"the reference was not recorded: ValueError: a fault of its own\nTraceback"),
        ("module missing", r"No module named 'a_module_nobody_has'\. .*pytest-fvparity\[reference\].*--fv-src-python"),
        ("no injection", "the reference was not recorded: normalisation injection_edits_bare_tensors was applied"),
    ],
)
def test_the_reason_comes_back_from_the_other_process(
    variant: str, message: str, llama: LanguageModel, fixed: FixedTrials, tmp_path: Path
) -> None:
    with pytest.raises(RecordingError, match=message):
        reference.run(plant(tmp_path, variant), llama, fixed, SRC)


def test_words_that_the_reference_would_space_twice_or_not_at_all_are_refused() -> None:
    with pytest.raises(driver.RecordingRefused, match="the word 'hot' has no leading space"):
        driver.words([{"input": "hot", "output": " cold"}])


# ---------------------------------------------------------------- the stand-in for baukit


def test_a_traced_layer_that_was_not_run_is_an_error(llama: LanguageModel) -> None:
    trace_dict = driver.TraceDict
    names = [f"{llama.spec.block_path(layer)}.mlp" for layer in range(2)]

    refused = pytest.raises(driver.RecordingRefused, match=r"a hook that did not fire: model\.layers\.1\.mlp$")
    with refused, trace_dict(llama.hf, names):
        llama.hf.get_submodule(names[0])(torch.zeros(1, 1, 32))


def test_traces_leave_no_hooks_behind(llama: LanguageModel) -> None:
    trace_dict, layer = driver.TraceDict, llama.spec.block_path(0)

    with pytest.raises(ZeroDivisionError), trace_dict(llama.hf, [layer]):
        1 / 0  # noqa: B018

    assert not llama.hf.get_submodule(layer)._forward_hooks


def test_a_recording_does_not_depend_on_which_modules_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = ModuleType("baukit")
    monkeypatch.setitem(sys.modules, "baukit", installed)
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))

    assert driver.provide_modules() == ["baukit_stand_in", "bitsandbytes_stand_in"]
    assert sys.modules["baukit"] is not installed
    assert hasattr(sys.modules["baukit"], "TraceDict")


@pytest.mark.parametrize("value", [math.nan, [0.0, math.inf]])
def test_a_number_that_is_not_finite_is_never_recorded(value: Any) -> None:
    value = torch.tensor(value) if isinstance(value, list) else value
    driver.require_finite({"fv_vector": {"norm": 1.0, "function_vector": torch.ones(2), "heads": [[0, 1]]}})

    with pytest.raises(driver.RecordingRefused, match="fv_vector: norm holds a number that is not finite"):
        driver.require_finite({"fv_vector": {"norm": value}})


def test_how_long_it_still_takes_is_told_in_words() -> None:
    assert progress.words("recording x", 0.25, 60) == "fvparity: recording x: 25 % after 60 s, about 3 min left"
    assert [progress.duration(seconds) for seconds in (4, 89, 600, 7500)] == ["4 s", "89 s", "10 min", "2 h 5 min"]


@pytest.mark.parametrize(("layers", "layer", "top"), [(2, 0, 8), (9, 3, 10), (10, 9, 10)])
def test_a_small_model_is_recorded_a_third_of_the_way_up(layers: int, layer: int, top: int) -> None:
    lm: Any = SimpleNamespace(n_layers=layers, heads=[(at, head) for at in range(layers) for head in range(4)])
    options: Any = SimpleNamespace(edit_layer=None, top_heads=None)

    assert fixtures.recording_defaults(lm) == {"edit_layer": layer, "n_top_heads": top, "token_class_idx": -1}
    said = fixtures.chosen_for(lm, options)
    assert (f"edit layer {layer}, a third of {layers} layers" in said) is (layers < 10)
    assert ("8 top heads" in said) is (top < 10)
