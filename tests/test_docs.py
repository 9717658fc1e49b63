"""The pages hold together before any generator sees them: links lead somewhere, each page has its place, names are told of."""

from __future__ import annotations

import inspect
import re
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(DOCS.rglob("*.md"))
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub and the site name them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_relative_link_leads_somewhere() -> None:
    links = [(page, *found) for page in PAGES for found in LINK.findall(prose(page))]
    lost = [(page.name, to) for page, to, _ in links if to and not (page.parent / to).exists()]
    lost += [
        (page.name, f"{to}#{anchor}")
        for page, to, anchor in links
        if anchor and anchor not in anchors(page.parent / to if to else page)
    ]

    assert len(links) > 40
    assert not lost


def test_no_fence_says_anything_in_backticks() -> None:
    """It would be none: what stands in it is shown as prose, and the text behind it as code."""
    assert not [
        (page.name, line) for page in PAGES for line in re.findall(r"^```.+`.*$", page.read_text(), re.MULTILINE)
    ]


def test_every_page_has_one_place_in_the_order_of_the_site() -> None:
    trees = re.findall(r"```{toctree}\n(.*?)```", (DOCS / "index.md").read_text(), re.DOTALL)
    placed = [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]
    pages = {str(page.relative_to(DOCS).with_suffix("")) for page in DOCS.rglob("*.md")}

    assert sorted(placed) == sorted(pages - {"index"} | {"self"})


def told_of() -> dict[str, Any]:
    """What the two pages of names are about: full name -> the thing itself."""
    found = {}
    for page in sorted((DOCS / "api").glob("*.md")):
        module = ""
        for kind, name in re.findall(r"^\.\. (currentmodule|auto\w+):: (\S+)$", page.read_text(), re.MULTILINE):
            if kind == "currentmodule":
                module = name
            else:
                found[f"{module}.{name}"] = getattr(import_module(module), name)
    return found


def silent(name: str, thing: Any) -> list[str]:
    """The name and its members that are public, have code and no docstring of their own."""
    own = inspect.cleandoc(thing.__doc__ or "")
    generated = inspect.isclass(thing) and own.startswith(f"{thing.__name__}(")  # by `dataclass`
    members = vars(thing).items() if inspect.isclass(thing) else ()
    code = (property, cached_property, classmethod, staticmethod)
    public = [(key, m) for key, m in members if key[0] != "_" and (inspect.isfunction(m) or isinstance(m, code))]
    return [name] * (not own or generated) + [f"{name}.{key}" for key, member in public if not member.__doc__]


def test_every_public_name_is_told_of_and_says_what_it_is() -> None:
    import fvcore

    found = told_of()
    assert {f"fvcore.{name}" for name in fvcore.__all__} - {"fvcore.__version__"} <= set(found)
    assert [name for told, thing in found.items() for name in silent(told, thing)] == []
