"""HTML that cannot be injected into: text is escaped where it goes in, and only what was built here is markup."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape


@dataclass(frozen=True)
class Html:
    """Markup; any other text is escaped by `tag`."""

    markup: str


Content = Html | str | Iterable["Content"]

_VOID = frozenset({"meta", "link", "img", "br"})


def tag(name: str, /, *content: Content, **attributes: str | None) -> Html:
    """One element.

    Args:
        name: of the element.
        content: text, elements, or any nesting of them.
        attributes: `class_` is class, and `_` within a name is `-`; those that are None are left out.
    """
    words = [name]
    for key, value in attributes.items():
        if value is not None:
            words.append(f'{key.rstrip("_").replace("_", "-")}="{escape(value)}"')
    opening = f"<{' '.join(words)}>"
    return Html(opening) if name in _VOID else Html(f"{opening}{join(content).markup}</{name}>")


def join(content: Content) -> Html:
    """Elements and text one after the other."""
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
    """A table in a box that scrolls by itself where it is wider than the page.

    Args:
        head: of each column.
        rows: first cells head their rows.
        numbers: columns that are right-aligned.
        caption: above it.
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
