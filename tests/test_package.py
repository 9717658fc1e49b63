"""What a person gets who installs the project: its dependencies, its wheel, and a parity run away from the checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distributions, packages_distributions, requires
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IMPORT_NAMES = {"pyyaml": "yaml", "pytest-xdist": "xdist"}


def _names(requirements: list[str]) -> set[str]:
    return {re.split(r"[<>=\[; ]", requirement)[0].lower() for requirement in requirements}


def _imported() -> set[str]:
    """Top-level names that the two packages import anywhere."""
    found = set()
    for package in ("fvcore", "pytest_fvparity"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    found |= {alias.name.partition(".")[0] for alias in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module:
                    found.add(node.module.partition(".")[0])
    return found


def test_a_plain_install_brings_every_run_time_dependency() -> None:
    declared = _names(PYPROJECT["project"]["dependencies"])
    plain = _names([r for r in requires("pytest-fvparity") or [] if "extra ==" not in r])

    assert plain == declared
    assert declared == {
        *("deepdiff", "fsspec", "jinja2", "matplotlib", "numpy", "psutil", "pydantic", "pytest", "pytest-xdist"),
        *("pyyaml", "rich", "safetensors", "scipy", "torch", "transformers", "typer"),
    }


def test_every_run_time_dependency_is_really_used() -> None:
    modules = {IMPORT_NAMES.get(name, name) for name in _names(PYPROJECT["project"]["dependencies"])}

    assert modules <= _imported()


def test_nothing_is_imported_that_a_plain_install_does_not_bring() -> None:
    declared = _names(PYPROJECT["project"]["dependencies"])
    # They come with transformers, which cannot do without them.
    brought = declared | {"tokenizers", "huggingface_hub"}
    providers = packages_distributions()
    # The reference's own modules and the private pytest parts are imported where they exist.
    not_ours = {"compute_indirect_effect", "_pytest", "fvcore", "pytest_fvparity", "__future__"}

    # More machines than one, a quicker reader and Parquet are extras, whose only rooms do without them or say so.
    extras = {"ray", "msgspec", "pyarrow"}

    for module in _imported() - extras - not_ours - set(sys.stdlib_module_names):
        names = {name.lower() for name in providers.get(module, [module])}
        assert names & brought, module


def test_the_constraints_pin_torch_and_fit_what_is_installed() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)

    assert pins["torch"] == "2.13.0"
    assert _names(PYPROJECT["project"]["dependencies"]) <= {name.lower() for name in pins}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
def test_the_wheel_carries_models_goldens_and_trials(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())

    for model in ("tiny-llama", "tiny-gpt2"):
        assert f"fvcore/embedded/{model}/model.safetensors" in names
        tag = model.replace("-", "_")
        trials = f"fixed_trials_tiny_antonym_t10_s10_seed0_{tag}"
        assert f"pytest_fvparity/shipped/datasets/fixed_trials/{trials}.json" in names
        for profile in ("src", "todd_upstream"):
            assert f"pytest_fvparity/shipped/golden/tiny_antonym/{trials}/{profile}/manifest.json" in names
    assert {"fvcore/py.typed", "pytest_fvparity/py.typed"} <= names
    assert "pytest_fvparity/report/templates/report.html.j2" in names


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel as pip installs it, in a folder of its own."""
    folder = tmp_path_factory.mktemp("site")
    how = ["--quiet", "--no-deps", "--no-index", "--target", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "install", *how, str(wheel)], check=True, capture_output=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", PYPROJECT["project"]["scripts"])
def test_each_console_script_is_installed_and_helps(site: Path, tmp_path: Path, name: str) -> None:
    (installed,) = [d for d in distributions(path=[str(site)]) if d.metadata["Name"] == "pytest-fvparity"]
    (script,) = installed.entry_points.select(group="console_scripts", name=name)
    assert script.value == PYPROJECT["project"]["scripts"][name]

    environment = {**os.environ, "PYTHONPATH": str(site), "TERM": "dumb", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, str(site / "bin" / name), "--help"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert f"Usage: {name}" in done.stdout
    for command in {"fvparity": ("selftest", "merge", "render"), "fvcore": ("trials",)}[name]:
        assert command in done.stdout


@pytest.mark.slow
def test_the_installed_wheel_runs_parity_outside_the_checkout(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = tmp_path / "project"
    project.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    command = [sys.executable, "-m", "pytest", "-m", "parity", "-rA"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout
    where = "import pytest_fvparity, fvcore; print(pytest_fvparity.__file__, fvcore.__file__)"
    origin = subprocess.run([sys.executable, "-c", where], cwd=project, capture_output=True, text=True, check=True)
    assert origin.stdout.count(str(site)) == 2
    (report,) = project.glob("reports/*/*/src_vs_fv_diff_report.json")
    assert '"overall_status": "PASS"' in report.read_text()
