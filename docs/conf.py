"""The documentation site, `make docs-site`: a broken link, or a public name without docstring, ends the build."""

from __future__ import annotations

import os
import re
from functools import cached_property
from importlib import import_module
from importlib.metadata import version as installed
from inspect import isfunction
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util import logging
from typer import Context
from typer.cli import get_docs_for_click
from typer.main import get_command

from pytest_fvparity import fixtures
from pytest_fvparity.options import OPTIONS

project = "fvparity"
version = release = installed("pytest-fvparity")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.viewcode"]

html_theme = "furo"
html_title = f"fvparity {release}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
smartquotes = False  # two dashes are an option
pygments_dark_style = "github-dark"
highlight_language = "none"  # what a command prints is no code

myst_heading_anchors = 4
# Single backticks in docstrings: a link where the site has the name, code where it has not.
default_role = "py:obj"
autodoc_default_options = {"members": True, "undoc-members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88

DOCS = Path(__file__).parent
ELSEWHERE = {
    "index": "README.md",
    "contributing": "CONTRIBUTING.md",
    "changelog": "CHANGELOG.md",
    "tiny-llama": "fvcore/embedded/tiny-llama/README.md",
    "tiny-gpt2": "fvcore/embedded/tiny-gpt2/README.md",
}
"""Pages whose text is a file of the project that is read without this site as well."""

COMMANDS = {"api/fvcore": "fvcore.cli", "api/fvparity": "pytest_fvparity.cli"}
"""Pages of everything that a command says of itself."""

SILENT = {"attribute", "data"}
"""What may stand without a docstring: fields, which their class tells of."""


def setup(app: Sphinx) -> None:
    app.connect("source-read", complete)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", told)
    app.connect("autodoc-process-signature", called)
    app.connect("build-finished", mend)
    for name, fixture in vars(fixtures).copy().items():
        if name.startswith("fv_"):
            setattr(fixtures, name, fixture.__wrapped__)  # what pytest wraps has no signature


def complete(app: Sphinx, name: str, source: list[str]) -> None:
    """Pages that stand elsewhere or in the code, and behind a page of examples the code that it speaks of."""
    if name in ELSEWHERE:
        file = DOCS.parent / ELSEWHERE[name]
        app.env.note_dependency(str(file))
        tables = "".join(re.findall(r"```{toctree}.*?```\n", source[0], re.DOTALL))
        source[0] = from_elsewhere(file) + tables
    elif name in COMMANDS:
        command = get_command(import_module(COMMANDS[name]).app)
        told = get_docs_for_click(obj=command, ctx=Context(command, info_name=Path(name).name), name=Path(name).name)
        source[0] = source[0].splitlines()[0] + "\n" + told.partition("\n")[2]
    elif name == "api/options":
        rows = [f"| `{option.flag}` | {option.help}{'' if option.ini else '; no ini twin'} |" for option in OPTIONS]
        source[0] += "\n".join(["", "| option | what |", "|---|---|", *rows])
    elif name.startswith("examples/"):
        files = sorted((DOCS / name).parent.glob("*.py"), key=lambda file: source[0].find(file.name))
        source[0] += "".join(
            f"\n## {file.name}\n\n```{{literalinclude}} {file.name}\n:language: python\n```\n" for file in files
        )


def from_elsewhere(file: Path) -> str:
    """A file's text without its front matter, its relative links as they are from here."""
    pages = {DOCS.parent / text: DOCS / f"{page}.md" for page, text in ELSEWHERE.items()}

    def link(found: re.Match[str]) -> str:
        target = file.parent / found[1]
        return f"]({os.path.relpath(pages.get(target, target), DOCS)}"

    text = re.sub(r"\A---\n.*?\n---\n", "", file.read_text(encoding="utf-8"), flags=re.DOTALL)
    return re.sub(r"\]\((?!https?:|#)([^)#]+)", link, text)


def skip(app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Fields of a class that nothing is said of stand in its signature."""
    is_code = isfunction(value) or isinstance(value, (property, cached_property, classmethod, staticmethod, type))
    return None if is_code or skipped else not getattr(value, "__doc__", None) or type(value).__doc__ == value.__doc__


def called(
    app: Sphinx, what: str, name: str, value: Any, options: Any, signature: str | None, returns: str | None
) -> Any:
    """What a field is made of when it is not given is nobody's matter, and no expression either."""
    return signature and re.sub(r" ?= ?<factory>", "", signature), returns


def told(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    if what not in SILENT and not any(lines):
        logging.getLogger(__name__).warning("%s: a public name without docstring", name, type="docstring")
    lines[:] = "\n\n".join(map(shown, "\n".join(lines).split("\n\n"))).splitlines()


def shown(paragraph: str) -> str:
    """A paragraph of `name: what it is` as a list, one that is indented as code."""
    if all(line.startswith("    ") for line in paragraph.splitlines()):
        return f".. code-block:: python\n\n{paragraph}"
    parts = re.split(r"\s{4,}|\n(?=\w+: )", paragraph)
    if not all(re.match(r"\w+: ", part) for part in parts):
        return paragraph
    return "\n".join("- " + re.sub(r"^(\w+): ", r"``\1``: ", " ".join(part.split())) for part in parts)


MENDED = {
    'role="heading"': 'role="heading" aria-level="2"',
    '<aside class="sidebar-drawer"': '<aside aria-label="All pages" class="sidebar-drawer"',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    '<th class="head"><p></p></th>': '<td class="head"></td>',
    # What scrolls must be reached by keys.
    "<pre>": '<pre tabindex="0">',
    '<div class="table-wrapper': '<div tabindex="0" class="table-wrapper',
}
"""What a checker of accessibility finds in every page of the theme, and what ends it."""


def mend(app: Sphinx, error: Exception | None) -> None:
    for page in app.outdir.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for found, instead in MENDED.items():
            text = text.replace(found, instead)
        # The parameters of a signature are a list of definitions that defines nothing.
        text = re.sub(r"<dl>\n(<dd>.*?)</dl>", as_list, text, flags=re.DOTALL)
        page.write_text(text, encoding="utf-8")


def as_list(found: re.Match[str]) -> str:
    items = found[1].replace("<dd>", '<div role="listitem">').replace("</dd>", "</div>")
    return f'<div role="list">{items}</div>'
