"""`fvparity init DIR`: the plans' folders, with scripts and modules under the plans' names and the data that they read."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from fvcore import shipped
from fvcore.formats import FormatError, write_bytes
from pytest_fvparity.plans.table import scripts

PLANS = ("antonym", "model-spec", "relation")

DATA = {
    "antonym": ("datasets/antonym/raw/antonym.json", "datasets/tiny_antonym/raw/tiny_antonym.json"),
    "model-spec": ("datasets/antonym/raw/antonym.json", "datasets/tiny_antonym/raw/tiny_antonym.json"),
    "relation": ("datasets/relation/relationA_ex.csv",),
}
MODULES = Path(__file__).parent / "fv"
README = Path(__file__).parent / "README.md"

CALLER = '''"""{says}

The plan's script; what its flags are here stands in one table: fvparity init --table
"""

import sys

from pytest_fvparity.plans.call import main

main("{name}", sys.argv[1:])
'''


def init(folder: Path, plans: Sequence[str] = PLANS) -> list[Path]:
    """Write the folders of some plans; returns the files. What is there already is left as it is, if it is the same.

    Raises FormatError, and writes nothing, where a file of another content is there.
    """
    planned = dict(_planned(plans))
    if there := [name for name, text in planned.items() if _is_other(folder / name, text)]:
        raise FormatError(
            f"{folder / there[0]} is there and holds something else; nothing was written: choose another folder"
        )
    for name, content in planned.items():
        write_bytes(folder / name, content)
    return [folder / name for name in planned]


def _is_other(path: Path, content: bytes) -> bool:
    return path.exists() and not (path.is_file() and path.read_bytes() == content)


def _planned(plans: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    for name, script in scripts().items():
        if set(script.plans) & set(plans):
            yield name, CALLER.format(says=f"{script.says[0].upper()}{script.says[1:]}.", name=name).encode()
    for path in sorted(MODULES.glob("*.py")):
        yield f"fv/{path.name}", path.read_bytes()
    for name in dict.fromkeys(name for plan in plans for name in DATA[plan]):
        yield name, (shipped.root() / name).read_bytes()
    yield "README.md", README.read_bytes()
