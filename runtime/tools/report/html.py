"""HTML that is safe from injection: `tag` escapes every text, and only elements that were built here are markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Html:
    """HTML markup. `tag` escapes any other text."""

    markup: str


Content = Html | str | Iterable["Content"]

_VOID = frozenset({"meta", "link", "img", "br"})


def tag(name: str, /, *content: Content, **attributes: str | None) -> Html:
    """Return an element.

    Args:
        name: name of the element.
        content: text, elements, or any nesting of them.
        attributes: attributes of the element. `class_` is class, `_` within a name is `-`, and an attribute of None is
            left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(value)}"')
    opening = f"<{' '.join(words)}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{join(content).markup}</{name}>")


def join(content: Content) -> Html:
    """Return elements and text one after the other."""
    if isinstance(content, Html):
        return content
    if isinstance(content, str):
        return Html(escape(content, quote=False))
    return Html("".join(join(item).markup for item in content))


def table(
    head: Sequence[Content],
    rows: Iterable[Sequence[Content]],
    *,
    numbers: Sequence[int] = (),
    caption: str | None = None,
) -> Html:
    """Return a table in a box that scrolls separately if the table is wider than the page.

    Args:
        head: heading of each column.
        rows: cells of each row; the first cell is the heading of its row.
        numbers: indices of the right-aligned columns.
        caption: caption above the table; None for no caption.
    """

    def cell(name: str, index: int, content: Content, scope: str | None = None) -> Html:
        return tag(name, content, class_="number" if index in numbers else None, scope=scope)

    body = [
        tag("tr", [cell("th", 0, row[0], "row"), *(cell("td", index, item) for index, item in enumerate(row[1:], 1))])
        for row in rows
    ]
    heads = tag("tr", [cell("th", index, item, "col") for index, item in enumerate(head)])
    inner = tag("table", tag("caption", caption) if caption else "", tag("thead", heads), tag("tbody", body))
    # Focus lets a keyboard scroll it.
    return tag("div", inner, class_="scroll", tabindex="0", role="region", aria_label=caption or "table")
