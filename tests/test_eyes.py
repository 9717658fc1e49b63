"""The palette, computed: contrast in light and in dark, colours told apart by all kinds of colour vision, one scale."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from fvcore import page, palette
from tests.eyes import problems

ROOT = Path(__file__).parents[1]
SCHEMES = {"light": palette.LIGHT, "dark": palette.DARK}
TEXT = ("ink", "quiet", "link", "good", "bad", "wait", "plus", "minus")
APART = 20.0  # CIE76; about 2 is the least that an eye sees side by side

# Machado, Oliveira and Fernandes 2009, severity 1: what linear red, green and blue become.
VISION = {
    "all three": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]]),
}  # fmt: skip


def linear(colour: str) -> np.ndarray:
    part = np.array(palette.channels(colour)) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """As WCAG 2 has it, 1 to 21."""
    low, high = sorted(float(linear(one) @ [0.2126, 0.7152, 0.0722]) for one in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, seen: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ np.clip(
        seen @ linear(colour), 0, 1
    )
    x, y, z = np.where((t := xyz / [0.9505, 1, 1.089]) > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(a: str, b: str) -> float:
    """The least distance of two colours over all kinds of vision."""
    return min(float(np.linalg.norm(lab(a, seen) - lab(b, seen))) for seen in VISION.values())


def in_the_dark(colour: str) -> str:
    """What the style makes of a picture's colour: inverted, its hue turned back, laid on the paper as light."""
    grey = np.array([0.213, 0.715, 0.072])
    turned = 2 * np.outer(np.ones(3), grey) - np.eye(3)
    light = np.clip(turned @ (1 - np.array(palette.channels(colour)) / 255), 0, 1)
    laid = 1 - (1 - light) * (1 - np.array(palette.channels(palette.DARK["paper"])) / 255)
    return "#" + "".join(f"{round(255 * part):02x}" for part in laid)


def blended(over: str, under: str, share: float) -> str:
    pairs = zip(palette.channels(over), palette.channels(under), strict=True)
    return "#" + "".join(f"{round(share * a + (1 - share) * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_can_be_read_on_what_it_stands_on(scheme: str) -> None:
    of = SCHEMES[scheme]
    weak = {(name, on) for name in TEXT for on in ("paper", "soft") if contrast(of[name], of[on]) < 4.5}
    shaded = {
        name for name in ("plus", "minus") if contrast(of["ink"], blended(of[name], of["paper"], palette.SHADE)) < 4.5
    }

    assert not weak
    assert not shaded


@pytest.mark.parametrize("scheme", SCHEMES)
def test_no_kind_of_colour_vision_takes_one_role_for_another(scheme: str) -> None:
    of = SCHEMES[scheme]
    pairs = [*combinations(("good", "bad", "wait"), 2), ("plus", "minus")]

    assert not {(a, b): apart(of[a], of[b]) for a, b in pairs if apart(of[a], of[b]) < APART}


def test_lines_of_a_picture_are_seen_and_told_apart_in_light_and_in_dark() -> None:
    for colours, paper in (
        (palette.SERIES, palette.LIGHT["paper"]),
        ([in_the_dark(one) for one in palette.SERIES], palette.DARK["paper"]),
    ):
        assert not [one for one in colours if contrast(one, paper) < 3]
        assert not {(a, b): apart(a, b) for a, b in combinations(colours, 2) if apart(a, b) < APART}


def test_a_map_grows_darker_from_zero_and_what_is_small_beside_others_is_pale() -> None:
    for sign in (-1, 1):
        darkness = [1 - float(linear(palette.colour(sign * value, 1.0)).mean()) for value in np.linspace(0, 1, 30)]
        assert darkness == sorted(darkness)
    assert contrast(palette.colour(1e-7, 1e-1), palette.colour(0.0, 1e-1)) < 1.01
    assert palette.colour(0.2, 0.1) == palette.colour(0.1, 0.1)
    assert palette.colour("nan", 0.1) == "none"


def test_letters_of_pictures_are_at_least_nine_pixels() -> None:
    """Eight points are 10.7 pixels: a picture is shown in its own size, and scrolls where it is wider than the page."""
    from fvcore.experiments.pictures import STYLE

    sizes = {
        name: size * 96 / 72 for name, size in STYLE.items() if name.endswith("size") and not name.startswith("lines")
    }
    source = "".join(path.read_text() for path in (ROOT / "fvcore").rglob("*.py"))
    smaller = [size for size in re.findall(r"fontsize=(\d+)", source) if int(size) * 96 / 72 < 9]

    assert sizes
    assert min(sizes.values()) >= 9
    assert not smaller


def test_no_template_has_a_colour_of_its_own() -> None:
    templates = [path for name in ("fvcore", "pytest_fvparity") for path in (ROOT / name).rglob("*.html.j2")]
    assert not {
        (path.name, colour)
        for path in templates
        if path.name != "parts.html.j2"
        for colour in re.findall(r"#[0-9a-f]{3,8}\b(?=[;\"])|rgba?\(\d+", path.read_text())
    }


def test_a_page_that_owes_something_is_told_so() -> None:
    """The checker itself: a page of the base alone lacks its h1, and each omission below is found."""
    base = page.environment("fvcore").get_template("page.html.j2").render()
    good = base.replace("<main>", "<main><h1>x</h1>")

    assert problems(base) == ["one h1 stands first, here headings are []"]
    assert problems(good) == []
    for spoiled in (
        '<html lang="en">|<html>', "</main>|<table></table></main>", "</main>|<h3>x</h3></main>",
        "</main>|<svg></svg></main>", "prefers-color-scheme: dark|x", "font: 16px|font: 8px", "@media print|@media x",
        '</main>|<div class="wide" tabindex="0" aria-label="x"><table><tr><th>x</th></tr></table></div></main>',
        '</main>|<div class="wide" tabindex="0" aria-label="x"><img src="x"></div></main>',
        '</main>|<p id="a"></p><p id="a"></p></main>', "body {|body { width: 900px;",
    ):  # fmt: skip
        what, by = spoiled.split("|")
        assert len(problems(good.replace(what, by, 1))) == 1, spoiled


def test_the_gallery_shows_every_picture_that_there_is_and_is_small() -> None:
    shown = re.findall(r"!\[.+?\]\(gallery/(.+?)\)", (ROOT / "docs" / "gallery.md").read_text())
    pictures = list((ROOT / "docs" / "gallery").iterdir())

    assert sorted(shown) == sorted(path.name for path in pictures)
    assert sum(path.stat().st_size for path in pictures) < 1.5 * 2**20
