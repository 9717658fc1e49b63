"""Text from files on its way to a reader: one escape for each medium, so that nothing in a file acts there.

A file's words can be anybody's: a line of theirs is no line of ours, and what a terminal, a CI runner, rich, Markdown or a
browser would act on is shown as what it is. HTML is escaped by jinja2, pictures are drawn without mathtext.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

# Control characters, line ends of every kind, marks that turn the direction of writing, and halves of surrogate pairs.
ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")
# What runners take for commands: at the start of a line, and anywhere in it.
COMMAND = re.compile(r"^(\s*)::|##(?=\[|vso\[)")
# What begins a link, HTML, code or emphasis anywhere, and a heading, a list or a quotation at the start.
MARKDOWN = re.compile(r"[\\`*<|]|~(?=~)|\](?=[(\[:])|^[-+>#=]|(?<=^\d)[.)]")


def line(text: object) -> str:
    """One line for a terminal or a log: what would act there is written as Python writes it, `\\\\x1b`, `\\\\n`."""
    shown = ACTING.sub(_written, str(text))
    return COMMAND.sub(lambda found: "#\\#" if found[0] == "##" else f"{found[1]}\\::", shown)


def lines(text: object) -> str:
    """Several lines, each as `line`; a tab is one."""
    return "\n".join(line(one.replace("\t", "    ")) for one in str(text).replace("\r\n", "\n").split("\n"))


def _written(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape", "backslashreplace").decode()


def markup(text: object) -> str:
    """For rich, which reads [tags]."""
    from rich.markup import escape

    return escape(f"{line(text)} ").removesuffix(" ")  # of a backslash at the end it makes two


def cell(text: object) -> str:
    """Plain words of Markdown, in a table too: no heading, link, picture, HTML or second line comes of them."""
    shown = line(" ".join(str(text).split()))
    return MARKDOWN.sub(lambda found: f"\\{found[0]}", shown.replace("&", "&amp;"))


def code(text: object) -> str:
    """What stands between two backticks of Markdown, in a table too."""
    return line(text).replace("`", "'").replace("|", "\\|") or " "


def fence(text: object) -> str:
    """A block of code of Markdown that nothing inside can close."""
    shown = lines(text)
    mark = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", shown)), default=0))
    return f"{mark}\n{shown}\n{mark}"


def link(path: str) -> str:
    """A file beside the page that links to it: never another scheme, whatever its folders are called."""
    return "./" + quote(path.encode(errors="surrogatepass"), safe="/ ")


def shell(words: Iterable[Any]) -> str:
    """A command to be copied into a shell, on one line."""
    return line(shlex.join(map(str, words)))


FILTERS = {one.__name__: one for one in (line, lines, cell, code, fence, link)}
"""For templates, by these names."""
