"""Pages of experiments: one base with its style, all that is put into HTML escaped, an unknown name an error."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fvcore import escapes
from fvcore.formats import write_text

NONE = "\u2013"


def write(path: Path, package: str, template: str, values: Mapping[str, Any]) -> Path:
    """Write the page of a template in `package`'s folder `templates`; it may extend the base `page.html.j2`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("fvcore.experiments")]),
        autoescape=".html." in template,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number} | escapes.FILTERS
    write_text(path, environment.get_template(template).render(values))
    return path


def number(value: float | None) -> str:
    """Three digits behind the point; what would be 0 then by its size, and a dash for what was not measured."""
    if value is None:
        return NONE
    return f"{value:.3f}" if value == 0 or abs(value) >= 5e-4 else f"{value:.0e}"
