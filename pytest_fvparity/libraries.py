"""The large libraries, imported as fast as they can be.

What an import makes stays to the end, half a million objects of torch and transformers. The interpreter's collector looks
them all over again and again while they come to be, and once more whenever it is asked to collect: a quarter of the time
that the imports take. pytest looks at the name of every one of the thousands of modules, for tests whose asserts it rewrites.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

LARGE = ("torch", "transformers", "transformers.generation", "transformers.modeling_utils")
"""The last two are what every model's module imports."""


def import_large() -> None:
    """All of them, once a process."""
    if any(name not in sys.modules for name in LARGE):
        with _never_collected(), _not_rewritten():
            for name in LARGE:
                import_module(name)


@contextmanager
def _never_collected() -> Iterator[None]:
    """What comes to be in this block is not looked over for garbage, now or later."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        if was:
            gc.enable()


@contextmanager
def _not_rewritten() -> Iterator[None]:
    """Without the finders that pytest has put before all others."""
    before = list(sys.meta_path)
    sys.meta_path[:] = [finder for finder in before if not type(finder).__module__.startswith("_pytest.")]
    try:
        yield
    finally:
        sys.meta_path[:] = [*before, *(finder for finder in sys.meta_path if finder not in before)]
