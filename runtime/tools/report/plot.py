"""The kinds of plots in reports. Each plot is one panel as wide as a phone."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen_image_engine.runtime.tools.report.html import Html
from qwen_image_engine.runtime.tools.report.svg import BAD, GRID, INK, MUTED, SERIES, inline, plotting

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 340
"""Width of a panel [CSS pixels]. The panel fits a phone without scaling, so text keeps its size."""

_DPI = 96
_MOST_TICKS = 8
_LABEL_WIDTH, _TICK_WIDTH = 6.3, 40.0
"""Widths of a letter in a row's label and of a label below an axis [CSS pixels]."""


@dataclass(frozen=True)
class Bar:
    """A bar of a bar plot.

    Attributes:
        label: label above the bar.
        value: length of the bar.
        text: text at the right end of the label's line.
        series: number of the bar's colour.
        marks: values of the marks to the right of the bar (p90, p99).
    """

    label: str
    value: float
    text: str
    series: int
    marks: tuple[float, ...] = ()


@dataclass(frozen=True)
class Line:
    """A curve over steps. Values that are not finite or not above 0 are left out, because the axis is logarithmic.

    `at` has the position of each value on the horizontal axis; empty for 1, 2, 3, …
    """

    label: str
    values: Sequence[float]
    series: int
    dashed: bool = False
    at: Sequence[float] = ()


@dataclass(frozen=True)
class Span:
    """An interval with its estimate. `mark` determines the colour: "good", "bad", or "" for grey."""

    label: str
    low: float
    estimate: float
    high: float
    mark: str = ""


def bars(name: str, title: str, items: Sequence[Bar]) -> Html:
    """Plot horizontal bars from 0. Labels are above the bars, and a thin line runs from a bar to its marks."""
    most = max([*(item.value for item in items), *(mark for item in items for mark in item.marks)]) or 1.0
    with plotting():
        figure, axes = _panel(40 * len(items) + 34, left=2, right=2, top=30, bottom=4)
        for row, item in enumerate(items):
            y = -row
            axes.barh(y, item.value, 0.3, color=SERIES[item.series % len(SERIES)])
            if item.marks:
                axes.plot([item.value, item.marks[-1]], [y, y], color=INK, linewidth=1)
                for mark in item.marks:
                    axes.plot([mark, mark], [y - 0.13, y + 0.13], color=INK, linewidth=1.2)
            axes.text(0, y + 0.22, item.label, fontsize=10, color=MUTED, va="bottom")
            axes.text(most, y + 0.22, item.text, fontsize=10, color=INK, va="bottom", ha="right")
        axes.set_xlim(0, most * 1.005)
        axes.set_ylim(-len(items) + 0.7, 0.75)
        axes.axis("off")
        return _finished(figure, name, title)


def curves(
    name: str,
    title: str,
    lines: Sequence[Line],
    sigmas: Sequence[float] = (),
    levels: Collection[tuple[float, int]] = (),
    across: str = "step",
) -> Html:
    """Plot curves over steps on a logarithmic axis.

    Args:
        name: name of the figure in the page.
        title: title of the panel.
        lines: the curves.
        sigmas: sigma of each step, shown below the axis; empty to show none.
        levels: (value, number of a colour) of each dashed horizontal line.
        across: name of the horizontal axis.
    """
    positions = sorted({place for line in lines for place in _places(line)})
    steps = len(positions)
    with plotting():
        figure, axes = _panel(240, left=46, right=10, top=30, bottom=44 if sigmas else 34)
        for line in lines:
            values = [value if math.isfinite(value) and value > 0 else math.nan for value in line.values]
            colour, style = SERIES[line.series % len(SERIES)], (0, (3, 2)) if line.dashed else "-"
            marker = "" if steps > 3 * _MOST_TICKS else "o"
            axes.plot(_places(line), values, color=colour, linestyle=style, marker=marker, markersize=3.5)
        for level, series in levels:
            axes.axhline(level, color=SERIES[series % len(SERIES)], linewidth=1, linestyle=(0, (6, 4)))
        axes.set_yscale("log")
        _padded(axes, [*(value for line in lines for value in line.values), *(level for level, _ in levels)])
        every = max(1, math.ceil(steps / _MOST_TICKS))
        ticks = positions[::every]
        axes.set_xticks(ticks, [""] * len(ticks))
        low, high = (positions[0], positions[-1]) if positions else (1, 1)
        margin = max(0.4, (high - low) / 40)
        axes.set_xlim(low - margin, max(high, low + 1) + margin)
        axes.tick_params(length=0)
        axes.grid(axis="y")
        _below(axes, ticks, [f"{tick:g}" for tick in ticks], across, 14)
        if sigmas:
            _below(axes, ticks, [f"{sigmas[round(tick) - 1]:.2f}" for tick in ticks], "sigma", 28)
        return _finished(figure, name, title)


def span_limits(items: Sequence[Span], margin: float) -> tuple[float, float]:
    """Return the ends of an axis on which all intervals fit. Panels that are compared share these ends."""
    low = min([1 / (1 + margin), *(item.low for item in items)])
    return low / 1.06, max([1 + margin, *(item.high for item in items)]) * 1.06


def spans(name: str, title: str, items: Sequence[Span], margin: float, limits: tuple[float, float]) -> Html:
    """Plot ratios with their intervals on a logarithmic axis, and the band around 1 in which there is no difference.

    Labels are to the left of the axes, in a column as wide as the longest label.
    """
    colours = {"good": SERIES[2], "bad": BAD}
    low, high = limits
    left = 12 + _LABEL_WIDTH * max(len(item.label) for item in items)
    with plotting():
        from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

        figure, axes = _panel(26 * len(items) + 62, left=left, right=12, top=32, bottom=24)
        axes.axvspan(1 / (1 + margin), 1 + margin, color=GRID, alpha=0.6, linewidth=0)
        axes.axvline(1, color=MUTED, linewidth=1)
        for row, item in enumerate(items):
            y, colour = -row, colours.get(item.mark, MUTED)
            axes.plot([item.low, item.high], [y, y], color=colour, linewidth=2.5, solid_capstyle="round")
            axes.plot([item.estimate], [y], "o", color=colour, markersize=6)
        axes.set_yticks([-row for row in range(len(items))], [item.label for item in items], fontsize=9)
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.set_ylim(-len(items) + 0.65, 0.65)
        known = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)
        axes.xaxis.set_major_locator(FixedLocator(_spread(known, low, high, (WIDTH - left) / _TICK_WIDTH)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
        axes.spines["left"].set_visible(False)
        axes.tick_params(length=0)
        return _finished(figure, name, title)


def _panel(height: float, *, left: float, right: float, top: float, bottom: float) -> tuple[Figure, Axes]:
    """Return a figure with one axes. Height and margins are in CSS pixels."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH / _DPI, height / _DPI), dpi=_DPI)
    inner = (left / WIDTH, bottom / height, 1 - (left + right) / WIDTH, 1 - (top + bottom) / height)
    return figure, figure.add_axes(inner)


def _finished(figure: Figure, name: str, title: str) -> Html:
    height = figure.get_figheight() * _DPI
    figure.text(2 / WIDTH, 1 - 16 / height, title, fontsize=12, fontweight="bold", color=INK)
    return inline(figure, name, title)


def _places(line: Line) -> Sequence[float]:
    return line.at or range(1, len(line.values) + 1)


def _below(axes: Axes, ticks: Sequence[float], labels: Sequence[str], name: str, depth: float) -> None:
    """Write a line of labels `depth` points below the axes, with the line's name to the left."""
    look: dict[str, Any] = {"textcoords": "offset points", "fontsize": 9, "color": MUTED}
    for tick, label in zip(ticks, labels, strict=True):
        axes.annotate(label, (tick, 0), (0, -depth), xycoords=axes.get_xaxis_transform(), ha="center", **look)
    axes.annotate(name, (0, 0), (-30, -depth), xycoords="axes fraction", **look)


def _padded(axes: Axes, values: Sequence[float]) -> None:
    """Extend the logarithmic axis to whole decades, so that at least two ticks have labels."""
    from matplotlib.ticker import NullLocator

    found = [value for value in values if math.isfinite(value) and value > 0] or [1.0]
    low, high = math.floor(math.log10(min(found))), math.ceil(math.log10(max(found)))
    low, high = low, max(high, low + 1)
    exponents = range(low, high + 1, max(1, math.ceil((high - low) / 5)))
    axes.set_ylim(10.0**low / 1.3, 10.0**high * 1.3)
    axes.set_yticks([10.0**exponent for exponent in exponents], [f"1e{exponent}" for exponent in exponents])
    axes.yaxis.set_minor_locator(NullLocator())


def _spread(ticks: Sequence[float], low: float, high: float, most: float) -> list[float]:
    """Return ticks that do not overlap, at most `most`, always including 1."""
    room, edge = math.log(high / low) / most, (high / low) ** 0.05
    kept = [1.0]
    for tick in sorted(ticks, key=lambda value: abs(math.log(value))):
        if low * edge <= tick <= high / edge and all(abs(math.log(tick / other)) >= room for other in kept):
            kept.append(tick)
    return sorted(kept)
