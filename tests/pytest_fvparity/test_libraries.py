"""What is set aside while large libraries are imported is there again behind it."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from pytest_fvparity import libraries

SETS_A_FINDER = "import sys\n\nclass Finder:\n    find_spec = staticmethod(lambda *asked: None)\n\nsys.meta_path.insert(0, Finder)\n"


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Mock]:
    """Imports a module of these lines as the only large one; what it gives is asked to keep things for good."""

    def run(text: str) -> Mock:
        (tmp_path / "fvparity_made_large.py").write_text(text)
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
        monkeypatch.setattr(libraries, "LARGE", ("fvparity_made_large",))
        monkeypatch.setattr(gc, "freeze", frozen := Mock())
        libraries.import_large()
        return frozen

    monkeypatch.delitem(sys.modules, "fvparity_made_large", raising=False)
    return run


def test_nothing_is_collected_while_a_library_is_imported_and_its_finders_stay(
    imported: Callable[[str], Mock],
) -> None:
    before = list(sys.meta_path)
    frozen = imported(f"import gc\nwas = gc.isenabled()\n{SETS_A_FINDER}")

    made = sys.modules.pop("fvparity_made_large")
    assert (made.was, gc.isenabled()) == (False, True)
    assert sys.meta_path == [*before, made.Finder]
    frozen.assert_called_once()


def test_a_library_that_cannot_be_imported_leaves_collector_and_finders_as_they_were(
    imported: Callable[[str], Mock],
) -> None:
    before = list(sys.meta_path)
    with pytest.raises(ZeroDivisionError):
        imported("1 / 0")

    assert gc.isenabled()
    assert sys.meta_path == before


def test_what_is_there_already_is_left_alone(imported: Callable[[str], Mock], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fvparity_made_large", sys)
    imported("1 / 0").assert_not_called()


def test_a_model_that_a_run_inside_a_test_imported_first_is_whole_behind_it(pytester: pytest.Pytester) -> None:
    """transformers keeps its class, and asks the source of its module whether its attention can be changed."""
    name = "transformers.models.ctrl.modeling_ctrl"
    pytester.makepyfile(f"def test_it():\n    import {name}")
    pytester.runpytest_inprocess("-p", "no:fvparity").assert_outcomes(passed=1)
    assert name in sys.modules
