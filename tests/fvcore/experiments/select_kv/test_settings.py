"""The settings of Select-KV: every key of the plan, from a file, a dotted `--set` and the plan's options."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import ValidationError
from typer.testing import CliRunner

from fvcore.experiments.config import ConfigError, leaves, resolve
from fvcore.experiments.select_kv import cli
from fvcore.experiments.select_kv.config import PLAN, TINY, WIRED, Phase2, SelectKVConfig
from fvcore.experiments.select_kv.errors import HFBackendUnavailable
from fvcore.formats import read_yaml, write_text

LEAVES = [name for name in leaves(SelectKVConfig) if name != "run"]
PLANNED = """
    seed model.id runtime.backend runtime.allow_mock_fallback runtime.device runtime.torch_dtype eval.on_samples
    eval.off_samples eval.repro_runs eval.n_random_trials eval.decoding prefix_len prefix.padding_mode
    injection.positioning_mode select.mode select.span_len select.span_budget select.min_span_distance
    select.candidate_policy select.center_policy layer_scope.selection layer_scope.injection thresholds.on_gain_min
    thresholds.off_delta_p99_max thresholds.delta_on_min thresholds.rel_kl_to_teacher_max thresholds.repro_acc_tol
    reporting.topk_tokens
""".split()  # noqa: SIM905


def resolved(*sets: str, file: Path | None = None, **given: Any) -> Phase2:
    return resolve(SelectKVConfig, given, file, sets).resolve()


def at(settings: Phase2, key: str) -> Any:
    value: Any = settings
    for name in key.split("."):
        value = getattr(value, name)
    return value


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Phase2]:
    """What the command would run."""
    seen: list[Phase2] = []
    monkeypatch.setattr(cli, "run", lambda command: seen.append(command.resolve()))
    return seen


def call(*words: object, kind: type[cli.Command] = cli.Command, default: Path = TINY) -> None:
    app = typer.Typer()
    cli.register(app, default=default, kind=kind)
    done = CliRunner().invoke(app, [str(word) for word in words])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


def test_the_plan_s_block_is_the_default_and_its_config_says_so() -> None:
    plan = resolved(file=PLAN)

    assert plan == Phase2()
    assert {key: at(plan, key) for key in ("seed", "prefix_len", "select.mode", "thresholds.rel_kl_to_teacher_max")} == {
        "seed": 7, "prefix_len": 32, "select.mode": "attention_diversity_span", "thresholds.rel_kl_to_teacher_max": 1.0,
    }  # fmt: skip
    assert plan.model.id == read_yaml(PLAN)["model"]["id"]


@pytest.mark.parametrize("key", PLANNED)
def test_every_key_of_the_plan_stands_in_its_block(key: str, tmp_path: Path) -> None:
    value = at(Phase2(), key)
    *groups, last = key.split(".")
    tree: Any = {last: value}
    for group in reversed(groups):
        tree = {group: tree}
    import yaml

    write_text(tmp_path / "c.yaml", yaml.safe_dump({"phase2": tree}))

    assert resolved(file=tmp_path / "c.yaml") == Phase2()


def test_a_key_that_is_misspelt_is_answered_by_the_one_that_was_meant() -> None:
    for name in LEAVES:
        group, dot, last = name.rpartition(".")
        with pytest.raises(ConfigError, match=rf"unknown setting; did you mean '{re.escape(group + dot)}\w+'"):
            resolved(f"{group}{dot}{last}{last[-1]}=1")


def test_a_value_of_another_type_is_refused_by_name() -> None:
    for name in LEAVES:
        with pytest.raises(ConfigError, match=rf"^--set {re.escape(name)}(\.\S+)?: "):
            resolved(f"{name}=[{{}}]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("phase2.select.span_len=0", "greater than or equal to 1"),
        ("phase2.select.min_span_distance=-1", "greater than or equal to 0"),
        ("phase2.prefix_len=-1", "greater than or equal to 0"),
        ("phase2.prefix_len=true", "valid integer"),
        ("phase2.prefix_len='8'", "valid integer"),
        ("phase2.eval.decoding=beam", "'greedy'"),
        ("phase2.eval.off_state_limit=0", "greater than or equal to 1"),
        ("phase2.eval.on_samples=1.5", "valid integer"),
        ("phase2.thresholds.off_delta_p99_max=-0.1", "greater than or equal to 0"),
        ("phase2.thresholds.repro_acc_tol=2", "less than or equal to 1"),
        ("phase2.thresholds.alpha_roundtrip=.nan", "finite"),
        ("phase2.layer_scope.injection=top50", "ranges such as 0,2,5-7"),
        ("phase2.tokenization.add_bos=maybe", "'auto'"),
        ("runtime.device=gpu", "match pattern"),
        ("seed=-1", "greater than or equal to 0"),
        ("model.id=''", "at least 1 character"),
        ("metrics.schema_version=2", "input should be 1"),
        ("data.synthetic.num_pairs=0", "greater than or equal to 1"),
        ("data.synthetic.query=Which?", "match pattern"),
        ("data.off.source=nothing", "match pattern"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(text: str, message: str) -> None:
    name = text.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^--set {re.escape(name)}(\.\S+)?: .*{re.escape(message)}"):
        resolved(text)


def test_an_option_of_the_plan_is_named_by_its_error() -> None:
    for option in ("--phase2-max-on", "--phase2-max-off", "--phase2-select-span-len"):
        with pytest.raises(ConfigError, match=f"^{option}: input should be greater than or equal to 1 .found 0."):
            call(option, 0)


def test_a_zero_is_a_value(asked: list[Phase2]) -> None:
    call(
        "--phase2-prefix-len", 0, "--seed", 0, "--phase2-thresholds-on-gain-min", 0, "--phase2-reporting-topk-tokens", 0
    )

    [settings] = asked
    zeros = (settings.prefix_len, settings.seed, settings.thresholds.on_gain_min, settings.reporting.topk_tokens)
    assert zeros == (0, 0, 0.0, 0)


def test_every_option_of_the_plan_is_taken(asked: list[Phase2]) -> None:
    call(
        "--phase2-model-id=a/b", "--phase2-device=cuda", "--phase2-max-on=3", "--phase2-max-off=4", "--phase2-prefix-len=5",
        "--phase2-select-mode=random_span", "--phase2-dtype=bfloat16", "--phase2-strict-hf", "--set",
        "runtime.allow_mock_fallback=true", "--phase", 2, kind=cli.PlanCommand, default=PLAN,
    )  # fmt: skip

    assert asked == [
        Phase2().changed(
            {
                "model.id": "a/b", "runtime.device": "cuda", "eval.on_samples": 3, "eval.off_samples": 4, "prefix_len": 5,
                "select.mode": "random_span", "runtime.torch_dtype": "bfloat16",
            }
        )
    ]  # fmt: skip
    assert asked[0].runtime.dtype == "bf16"


def test_another_phase_is_refused() -> None:
    with pytest.raises(ConfigError, match="--phase: expected 2, Select-KV"):
        call("--phase", 1, kind=cli.PlanCommand)


def test_the_command_line_comes_before_the_file_wherever_both_say_it(tmp_path: Path, asked: list[Phase2]) -> None:
    write_text(
        tmp_path / "c.yaml",
        "seed: 1\nmodel: {id: top}\nruntime: {threads: 2}\n"
        "phase2: {seed: 2, model: {id: inside}, runtime: {device: cuda}, select: {span_len: 3}}\n",
    )
    file = ["--config", tmp_path / "c.yaml"]

    call(*file)
    call(*file, "--seed=3", "--set", "model.id=line", "--set", "phase2.runtime.threads=4", "--phase2-select-span-len=9")

    of_file, of_line = asked
    assert (of_file.seed, of_file.model.id, of_file.select.span_len) == (2, "inside", 3)
    assert (of_file.runtime.threads, of_file.runtime.device) == (2, "cuda")
    assert (of_line.seed, of_line.model.id, of_line.select.span_len) == (3, "line", 9)
    assert (of_line.runtime.threads, of_line.runtime.device) == (4, "cuda")


def test_on_and_off_are_keys_as_people_write_them(tmp_path: Path) -> None:
    write_text(tmp_path / "c.yaml", "data:\n  on: {source: relation}\n  off: {source: legacy5, allow_repeat: yes}\n")

    settings = resolved(file=tmp_path / "c.yaml")

    assert (settings.data.on.source, settings.data.off.source, settings.data.off.allow_repeat) == (
        "relation",
        "legacy5",
        True,
    )


@pytest.mark.parametrize("path", [TINY, WIRED, PLAN])
def test_what_is_saved_is_the_resolved_config_and_is_read_again(path: Path, tmp_path: Path) -> None:
    settings = resolved(
        "phase2.layer_scope.injection=[2, 3]", "phase2.data.synthetic.value_pool=[A, B, C, D, E]", file=path
    )
    write_text(tmp_path / "c.yaml", settings.text() + "run: {run_id: r, argv: [a]}\n")

    assert resolved(file=tmp_path / "c.yaml") == settings
    saved = read_yaml(tmp_path / "c.yaml")
    assert set(saved) == {"seed", "model", "data", "metrics", "runtime", "phase2", "run"}
    assert saved["phase2"]["layer_scope"]["injection"] == [2, 3]
    assert saved["model"]["id"] == settings.model.id


def test_layers_are_words_or_numbers(asked: list[Phase2]) -> None:
    for text in ("all", "top25", "2,4-5"):
        call(f"--phase2-layer-scope-injection={text}")

    assert [settings.layer_scope.injection for settings in asked] == ["all", "top25", (2, 4, 5)]


def test_other_settings_are_as_strict() -> None:
    assert Phase2().changed({"select.span_len": 9}).select.span_len == 9
    with pytest.raises(ValidationError):
        Phase2().changed({"select.span_len": 0})
    with pytest.raises(ValidationError):
        Phase2().changed({"select.length": 3})


@pytest.mark.parametrize("text", ["runtime.backend=mock", "runtime.allow_mock_fallback=true"])
def test_a_stand_in_is_refused(text: str) -> None:
    with pytest.raises(HFBackendUnavailable, match="runtime\\."):
        resolved(text).require_hf()
    resolved().require_hf()


def test_what_is_seldom_meant_is_said() -> None:
    assert not Phase2().warnings
    odd = Phase2().changed(
        {
            "prefix_len": 15,
            "eval.n_random_trials": 3,
            "select.candidate_policy": "all",
            "select.mode": "causal_drop_span",
        }
    )
    assert len(odd.warnings) == 4
    assert "16 tokens are asked for and prefix_len is 15" in odd.warnings[0]
    eligible = odd.changed({"select.causal_drop.gate_eligible": True})
    assert odd.is_advisory
    assert not eligible.is_advisory
    assert eligible.changed({"select.causal_drop.metric": "answer_logprob"}).is_advisory
