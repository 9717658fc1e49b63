"""Pages: one base with its style and its palette, all that is put into HTML escaped, an unknown name an error.

A page is a template that extends `page.html.j2`; what pages have in common is drawn by the macros of `parts.html.j2`.
"""

from __future__ import annotations

import base64
import re
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fvcore import escapes, maps, palette
from fvcore.formats import write_text

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

NONE = "\u2013"
DENSITY = 2
"""Dots of a picture for each pixel of a page, so that it is sharp on fine screens too."""


@cache
def environment(package: str) -> Environment:
    """Templates in `package`'s folder `templates`, and the base behind them; what ends in `.html.j2` is escaped.

    One a package and process, so that they are compiled once.
    """
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined, select_autoescape

    templates = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("fvcore")]),
        autoescape=select_autoescape(enabled_extensions=("html.j2",)),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters |= {"number": number, "image": image, "breakable": breakable} | escapes.FILTERS
    templates.filters |= {"colour": palette.colour, "squares": maps.squares, "picture": maps.picture}
    templates.filters["are_many"] = maps.are_many
    templates.globals["palette"] = palette
    return templates


def write(path: Path, package: str, template: str, values: Mapping[str, Any]) -> Path:
    """Write the page of a template of `package`."""
    write_text(path, environment(package).get_template(template).render(values))
    return path


def number(value: float | None) -> str:
    """Three digits behind the point; what would be 0 then by its size, and a dash for what was not measured."""
    if value is None:
        return NONE
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.0e}"


def breakable(text: object) -> Markup:
    """Text whose names and paths may go on in the next line behind `_`, `/`, `.`, `:` and `=`, and nowhere within a word."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"([_/.:=]+)(?=\w)", r"\1<wbr>", str(escape(text))))


def image(png: bytes, alt: str) -> Markup:
    """A PNG as an image of a page that is whole in itself, in its own size; `alt` says what it shows."""
    from markupsafe import Markup

    width, height = (dots // DENSITY for dots in struct.unpack(">II", png[16:24]))
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    return Markup('<img src="{}" width="{}" height="{}" alt="{}">').format(source, width, height, alt)
