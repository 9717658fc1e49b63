"""What a page owes everybody's eyes, as far as its text tells: asked of every page where a test has drawn it anyway."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

VOID = {"img", "meta", "wbr", "br", "rect", "circle", "path", "link"}
PHONE = 390  # pixels


def problems(page: str) -> list[str]:
    """What is wrong with a page, a line each; empty where nothing is."""
    read = _Page(page)
    found = list(read.found)
    if read.first != ("html", "en"):
        found.append("the page does not say its language")
    if read.headings.count(1) != 1 or read.headings[:1] != [1]:
        found.append(f"one h1 stands first, here headings are {read.headings[:5]}")
    found += [f"h{a} is followed by h{b}" for a, b in zip(read.headings, read.headings[1:], strict=False) if b > a + 1]
    found += [f"the id {one} stands twice" for one in set(read.ids) if read.ids.count(one) > 1]
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    for needed in ("prefers-color-scheme: dark", "@media print", "color-scheme: light dark"):
        found += [] if needed in style else [f"the style has no {needed}"]
    # Lengths in pixels on the body's side of a phone, outside of what scrolls by itself.
    wide = [int(pixels) for pixels in re.findall(r"(?<![-\w])width:\s*(\d+)px", style) if int(pixels) > PHONE]
    found += [f"{pixels} pixels are wider than a phone" for pixels in wide]
    small = [size for size in re.findall(r"font(?:-size)?:\s*(\d+)px", style.split("@media print")[0]) if int(size) < 9]
    return found + [f"letters of {size} pixels" for size in small]


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.headings: list[int] = []
        self.ids: list[str] = []
        self.open: list[dict[str, Any]] = []
        self.first: tuple[str, str | None] | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        of: dict[str, Any] = dict(attrs)
        self.first = self.first or (tag, of.get("lang"))
        self.ids += [of["id"]] if of.get("id") else []
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        scrolls = any(one.get("class") == "wide" for one in self.open)
        if tag == "th" and of.get("scope") not in {"col", "row", "colgroup", "rowgroup"}:
            self.found.append(f"a th without scope: {self.get_starttag_text()}")
        if tag == "img" and not of.get("alt"):
            self.found.append("an image without words")
        if tag == "svg" and not (of.get("role") == "img" and of.get("aria-label")):
            self.found.append("a drawing without words")
        if tag in {"table", "img"} and not scrolls:
            self.found.append(f"a {tag} that does not scroll by itself: {self.get_starttag_text()[:80]}")  # type: ignore[index]
        if of.get("class") == "wide" and not (of.get("tabindex") == "0" and of.get("aria-label")):
            self.found.append("what scrolls is not reached by keys, or has no name")
        if tag not in VOID:
            self.open.append(of | {"tag": tag})

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop()["tag"] != tag:
            pass
