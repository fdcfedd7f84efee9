"""Components and layers in a verification's page: tables with thresholds, errors through the depth."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from qwen_image_engine.export.verify.result import side_by_side
from qwen_image_engine.runtime.tools.report.html import Content, Html, table, tag
from qwen_image_engine.runtime.tools.report.plot import Line, curves
from qwen_image_engine.runtime.tools.report.sections import legend, marked, more, plots, section, short_names

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.result import Row, Verification


def components_section(bundles: tuple[Verification, ...]) -> Html:
    """Return the worst request of each component beside its threshold, with all requests folded."""
    content: list[Content] = [
        tag(
            "p",
            "Relative L2 is the norm of the difference over the norm of the reference's output: 1e-6 is fp32 rounding, "
            "1e-2 what 8 bits cost. Each component gets the reference's own inputs, so rows do not add up, but for "
            "teacher_forced: the bundle's own text encoder, prefix and step on the reference's latents.",
            class_="note",
        )
    ]
    if len(bundles) > 1:
        content.append(_side_by_side(bundles))
    head = _head(bundles[0])
    for name, bundle in zip(short_names([bundle.bundle for bundle in bundles]), bundles, strict=True):
        components = dict.fromkeys(row.component for row in bundle.rows)
        worst = [_worst([row for row in bundle.rows if row.component == own]) for own in components]
        if len(bundles) > 1:
            content.append(tag("h3", name))
        content.append(
            table(head, map(_cells, worst), numbers=range(3, len(head)), caption="The worst request of each component")
        )
        content.append(
            more(f"All {len(bundle.rows)} rows", table(head, map(_cells, bundle.rows), numbers=range(3, len(head))))
        )
        reasons = [
            (row.component, row.threshold.over, tag("span", row.threshold.reason, class_="wrap")) for row in worst
        ]
        content.append(more("Why these thresholds", table(("component", "over steps", "reason"), reasons)))
    return section("Components", content)


def _worst(rows: list[Row]) -> Row:
    return max(rows, key=lambda row: (not row.passed, row.judged.relative_l2))


def _head(bundle: Verification) -> list[str]:
    return ["", *("request" if name == "case" else name for name in bundle.rows[0].cells())]


def _cells(row: Row) -> list[Content]:
    return [_mark(row), *row.cells().values()]


def _mark(row: Row, figure: str = "") -> Html:
    return marked("good", f"✓{figure}") if row.passed else marked("bad", f"✗{figure}")


def _side_by_side(bundles: tuple[Verification, ...]) -> Html:
    rows = [
        (*key, *("" if row is None else _mark(row, f" {row.cells()['relative L2']}") for row in found))
        for key, found in side_by_side(bundles).items()
    ]
    names = short_names([bundle.bundle for bundle in bundles])
    about = (f"{name} ({item.target} {item.precision})" for name, item in zip(names, bundles, strict=True))
    head = ("component", "request", *about)
    return table(head, rows, numbers=range(2, len(head)), caption="Relative L2, a column a bundle")


def layers_section(bundles: tuple[Verification, ...]) -> Html | str:
    """Return the errors by layer; "" if they were not requested."""
    asked = [bundle for bundle in bundles if bundle.layers is not None]
    if not asked:
        return ""
    lines, details = [], []
    # A quantised bundle has no rows for some; the others stand below each other.
    order = max(([layer.name for layer in bundle.layers.layers] for bundle in asked if bundle.layers), key=len)
    names = short_names([bundle.bundle for bundle in bundles])
    for index, bundle in enumerate(bundles):
        layers = bundle.layers
        if layers is None:
            continue
        found = {layer.name: layer.worst.relative_l2 for layer in layers.layers}
        lines.append(Line(names[index], [found.get(name, math.nan) for name in order], index))
        most = layers.grows_most_at
        rows = [(str(number), *layer.cells().values()) for number, layer in enumerate(layers.layers, 1)]
        words = (
            "No layer is beyond the component's threshold."
            if most is None
            else f"The error grows most at {most.name}, {most.growth:.1f} times."
        )
        if layers.note:
            words += f" {layers.note}."
        head = ("", *layers.layers[0].cells())
        numbers = (0, *range(2, len(head)))
        details.append(tag("p", f"{names[index]}, {layers.component}: {words}"))
        details.append(more(f"{len(rows)} layers of {names[index]}", table(head, rows, numbers=numbers)))
        if layers.scaled:
            details.append(more(f"Linears of {names[index]} without a row", tag("p", ", ".join(layers.scaled))))
    keys = legend([(line.label, line.series, False) for line in lines])
    caption = (
        "Relative L2 of each linear's and block's output in the order in which they run, the worst of first and last "
        "step of every request. What came together up to a layer: an error that begins somewhere is a jump there. "
        "Gaps are layers without a row, or without any error."
    )
    plot = curves("layers", "error through the depth", lines, across="layer")
    return section("Layers", plots([plot], caption, keys=keys), details)
