"""Pictures as bytes: a figure of a size is painted and saved, and equal pictures are equal bytes."""

import base64
import io
from collections.abc import Callable
from typing import Any

Paint = Callable[[Any], None]


def png(paint: Paint, size: tuple[float, float], dpi: int) -> bytes:
    """What `paint` draws on a matplotlib Figure of `size` inches, with `dpi` dots an inch."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with rc_context({"text.parse_math": False}):  # a dollar sign in a word is a dollar sign
        figure = Figure(figsize=size, dpi=dpi, layout="constrained")
        paint(figure)
        # Without the name of the program that drew it: it changes with every release of matplotlib.
        figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def data_uri(picture: bytes) -> str:
    """A PNG as the `src` of an image, for pages that are whole in themselves."""
    return "data:image/png;base64," + base64.b64encode(picture).decode()
