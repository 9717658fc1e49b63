"""A path in the ini file is relative to that file, whatever the option and wherever pytest is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_fvparity.options import OPTIONS, ParityOptions

PATHS = {option.field for option in OPTIONS if option.type is Path and option.ini}
NAMED = {"model": "models/ours", "spec": "own.yaml", "candidate_python": "bin/python", "src_python": "bin/python"}


def parsed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, *words: str) -> ParityOptions:
    (pytester.path / "deep").mkdir(exist_ok=True)
    monkeypatch.chdir(pytester.path / "deep")
    return ParityOptions.from_config(pytester.parseconfig(*words))


@pytest.fixture
def there(pytester: pytest.Pytester) -> pytest.Pytester:
    """A project that keeps everything its ini file names."""
    spec = "blocks_path: model.layers\nattn_path_in_block: self_attn\nout_proj_path_in_attn: o_proj\n"
    files = {"models/ours/config.json": "{}", "own.yaml": spec, "bin/python": "", "trials": "{}"}
    for name, text in files.items():
        (pytester.path / name).parent.mkdir(parents=True, exist_ok=True)
        (pytester.path / name).write_text(text)
    return pytester


def test_every_path_of_the_ini_file_is_beside_it(there: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    values = {**{name: name for name in PATHS}, **NAMED, "candidate": "own:make"}
    there.makeini(
        "[pytest]\n" + "".join(f"fv_{name} = {value}\n" for name, value in values.items() if name != "candidate_dir")
    )
    options = parsed(there, monkeypatch, "--rootdir=..", "-c", "../tox.ini")

    for name in (PATHS | NAMED.keys()) - {"candidate_dir"}:
        found = getattr(options, name)
        assert Path(found[0] if isinstance(found, tuple) else found) == there.path / values[name], name
    assert options.beside == there.path


def test_on_the_command_line_a_path_is_relative_to_here(
    there: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.makeini("[pytest]\nfv_model = models/ours\n")
    options = parsed(there, monkeypatch, "--fv-model=../models/ours", "--fv-src-python=../bin/python", "--fv-src=..")

    assert options.model == str(there.path / "models" / "ours")
    assert (options.src_python, options.src) == (str(there.path / "deep/../bin/python"), there.path)
    assert parsed(there, monkeypatch, "--fv-model=tiny-llama").model == "tiny-llama"


def test_a_directory_that_is_not_there_is_named_as_it_was_looked_for(
    there: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    there.makeini("[pytest]\nfv_model = models/theirs\n")
    (there.path / "deep").mkdir()
    monkeypatch.chdir(there.path / "deep")

    result = there.runpytest_inprocess("-m", "parity")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"ERROR: --fv-model: no model 'models/theirs': there is no directory {there.path}/models/theirs, *"]
    )
