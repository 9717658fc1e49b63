"""What a person gets who installs the project: its dependencies, its wheel and sdist, and a parity run away from the checkout."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
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
    # They come with transformers and with jinja2, which cannot do without them.
    brought = declared | {"tokenizers", "huggingface_hub", "markupsafe"}
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
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the sdist and of the wheel made of it, as a release builds them."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    environment = {**os.environ, "GITHUB_SERVER_URL": "https://git.example", "GITHUB_REPOSITORY": "o/r"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (wheel,) = built.glob("*.whl")
    return wheel


def files(folder: str) -> set[str]:
    """Of the checkout, without what tools leave there and without the tier of goldens that lies elsewhere."""
    ignored = ("__pycache__", ".pyc", ".full.safetensors")
    found = (path.relative_to(ROOT).as_posix() for path in (ROOT / folder).rglob("*") if path.is_file())
    return {name for name in found if not any(part in name for part in ignored)}


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_what_ships_with_them_and_nothing_else(wheel: Path) -> None:
    top, here = "fvcore/experiments/select_kv/cedkv_mvp/", "fvcore/shipped/"
    code = {name.removeprefix(top.removesuffix("cedkv_mvp/")) if top in name else name for name in files("fvcore")}
    expected = code | files("pytest_fvparity") | {f"{here}{name}" for name in files("golden") | files("datasets")}

    assert {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected
    for kind in (
        ".py",
        ".yaml",
        ".md.j2",
        ".html.j2",
        "model.safetensors",
        "tokenizer.json",
        "py.typed",
        "manifest.json",
    ):
        assert any(name.endswith(kind) for name in expected), kind


@pytest.mark.slow
def test_the_sdist_holds_what_the_wheel_is_made_of(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    folders = ("fvcore", "pytest_fvparity", "golden", "datasets")
    beside = {".gitignore", "CHANGELOG.md", "LICENSE", "PKG-INFO", "README.md", "constraints.txt", "hatch_build.py"}

    assert names == set().union(*map(files, folders)) | beside | {"pyproject.toml"}


@pytest.mark.slow
def test_the_page_on_an_index_leads_back_to_the_repository(wheel: Path) -> None:
    (name,) = [name for name in ZipFile(wheel).namelist() if name.endswith("/METADATA")]
    metadata = ZipFile(wheel).read(name).decode()
    version = re.search(r"^Version: (.*)$", metadata, re.M)
    assert version

    assert "Project-URL: Homepage, https://git.example/o/r\n" in metadata
    assert f"](https://git.example/o/r/blob/v{version[1]}/docs/ci.md)" in metadata
    assert not re.findall(r"\]\((?!https?:|#)[^)]*\)", metadata.partition("\n\n")[2])


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
    for command in {"fvparity": ("selftest", "merge", "render", "compare"), "fvcore": ("trials",)}[name]:
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
