"""Conversion of matplotlib figures to inline SVG with the colours and fonts of the page and with unique ids."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from qwen_image_engine.runtime.tools.report.html import Html

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "#010203": "ink",
    "#010204": "muted",
    "#010205": "grid",
    "#010206": "good",
    "#010207": "bad",
    "#010208": "page",
    **{f"#02030{index}": f"series-{index}" for index in range(8)},
}
"""Placeholder colours in plots, each with the name of the page's colour, light or dark, that replaces it."""

INK, MUTED, GRID, GOOD, BAD, PAGE, *SERIES = COLOURS

_XLINK = "{http://www.w3.org/1999/xlink}href"
_FONT = re.compile(r"font: (?:(bold|[1-9]00) )?([\d.]+px) [^;]*")
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


@contextmanager
def plotting() -> Iterator[None]:
    """Apply matplotlib's settings for figures of a report within the context only."""
    import matplotlib

    settings: dict[Any, Any] = {
        "svg.fonttype": "none",  # text stays text
        "svg.hashsalt": "qwen-image",  # the same figure gives the same bytes
        "font.family": "sans-serif",
        "font.size": 11,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.edgecolor": GRID,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.unicode_minus": True,
        "axes.axisbelow": True,
        "figure.facecolor": "none",
        "grid.color": GRID,
        "grid.linewidth": 0.7,
        "xtick.color": GRID,
        "ytick.color": GRID,
        "xtick.labelcolor": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": 10,
        "ytick.labelsize": 10,
        "text.parse_math": False,  # a $ in somebody's name is a $
    }
    with matplotlib.rc_context(settings):
        yield


def inline(figure: Figure, name: str, title: str) -> Html:
    """Return the figure as an `svg` element.

    Args:
        figure: figure that was drawn inside `plotting`.
        name: name of the figure in the page, made of letters, digits and hyphens. Ids begin with it.
        title: description of the figure for screen readers.
    """
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    root = ElementTree.fromstring(buffer.getvalue())
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]  # in HTML, an svg element's namespace goes without saying
        _rename(element, name)
    for metadata in root.findall("metadata"):
        root.remove(metadata)
    width = float(root.attrib.pop("width").removesuffix("pt"))
    root.attrib.pop("height")
    root.attrib.pop("version", None)
    root.attrib |= {"class": "plot", "role": "img", "aria-label": title, "style": f"max-width: {width * 4 / 3:.0f}px"}
    return Html(ElementTree.tostring(root, encoding="unicode", short_empty_elements=False))


def _rename(element: ElementTree.Element, name: str) -> None:
    attributes = element.attrib
    if "id" in attributes:
        attributes["id"] = f"{name}-{attributes['id']}"
    if _XLINK in attributes:
        attributes["href"] = f"#{name}-{attributes.pop(_XLINK).removeprefix('#')}"
    for key in ("clip-path", "style", "fill", "stroke"):
        if key in attributes:
            value = _REFERENCE.sub(rf"url(#{name}-\1)", attributes[key])
            for colour, variable in COLOURS.items():
                value = value.replace(colour, f"var(--{variable})")
            attributes[key] = _FONT.sub(_sized, value)


def _sized(found: re.Match[str]) -> str:
    weight = f"; font-weight: {found[1]}" if found[1] else ""
    return f"font-size: {found[2]}{weight}"
