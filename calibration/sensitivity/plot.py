"""The plot of a sensitivity as SVG: a heat map of linears by block, and a line over the schedule for each kind."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from qwen_image_engine.calibration.rules.linears import block_index
from qwen_image_engine.calibration.sensitivity.sensitivity import GROUPS, Sensitivity, judged

_LEFT, _RIGHT = 140, 190
"""Margins for labels and for legends [pixels]."""
_ROW = 26
_HEAT_MAP_WIDTH, _CHART_HEIGHT = 640, 300
_INK, _GRID = "#222222", "#dddddd"
_PALEST, _DARKEST = (237, 243, 250), (8, 48, 107)
# Paul Tol's "bright" scheme, which the colour-blind tell apart: https://personal.sron.nl/~pault/
_LINES = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#777777")


def plot(sensitivity: Sensitivity) -> str:
    """Return the plot as the text of an SVG file."""
    groups = [group for group in GROUPS if sensitivity.of_group(group)]
    chart_top = 174 + _ROW * len(groups)
    width, height = _LEFT + _HEAT_MAP_WIDTH + _RIGHT, chart_top + _CHART_HEIGHT + 60
    name = sensitivity.settings.checkpoint.name
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="12" fill="{_INK}">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        _text(
            _LEFT, 28, f"{name}, {sensitivity.precision} for {sensitivity.target}: error of the step's output", size=16
        ),
        _text(
            _LEFT,
            48,
            f"relative L2 against the network as it is, {len(sensitivity.pictures)} pictures; "
            f"all {len(sensitivity.alone)} linears together: {_percent(judged(sensitivity.together))}",
        ),
        *_heat_map(sensitivity, groups, 88),
        *_chart(sensitivity, groups, chart_top),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


@dataclass(frozen=True)
class _LogScale:
    """A logarithmic scale that maps values to 0 … 1.

    Attributes:
        ticks: 1, 2 and 5 times powers of ten, from the largest tick that is not above the smallest value to the
            smallest tick that is above the largest value.
    """

    ticks: Sequence[float]

    @classmethod
    def of(cls, values: Sequence[float]) -> _LogScale:
        """Return the scale of all values above 0."""
        positive = [value for value in values if value > 0] or [1.0]
        # A power more on either side: log10 rounds.
        powers = range(math.floor(math.log10(min(positive))) - 1, math.ceil(math.log10(max(positive))) + 2)
        ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        first = max(index for index, tick in enumerate(ticks) if tick <= min(positive))
        last = next(index for index, tick in enumerate(ticks) if tick > max(positive))
        return cls(ticks[first : last + 1])

    def place(self, value: float) -> float:
        """Return the position of a value: 0 for the first tick and everything below it, 1 for the last tick."""
        lowest, highest = self.ticks[0], self.ticks[-1]
        return math.log(max(value, lowest) / lowest) / math.log(highest / lowest)


def _heat_map(sensitivity: Sensitivity, groups: Sequence[str], top: int) -> Iterator[str]:
    """Yield the elements of the heat map: kinds of linears down, blocks across, the error of one linear as colour."""
    blocks = sensitivity.blocks
    cell = _HEAT_MAP_WIDTH / len(blocks)
    scale = _LogScale.of([sensitivity.rms(name) for name in sensitivity.alone])
    yield _text(_LEFT, top - 12, "one linear quantised alone, over all steps", weight="bold")
    for row, group in enumerate(groups):
        y = top + row * _ROW
        yield _text(_LEFT - 8, y + _ROW / 2 + 4, group, anchor="end")
        for name in sensitivity.of_group(group):
            column = blocks.index(block_index(name))
            error = sensitivity.rms(name)
            yield (
                f'<rect x="{_LEFT + column * cell:.1f}" y="{y}" width="{cell - 1:.1f}" height="{_ROW - 1}" '
                f'fill="{_colour(scale.place(error))}"><title>{escape(name)}: {_percent(error)}</title></rect>'
            )
    bottom = top + len(groups) * _ROW
    every = math.ceil(len(blocks) / 16)
    for column, block in enumerate(blocks):
        if column % every == 0:
            yield _text(_LEFT + (column + 0.5) * cell, bottom + 16, str(block), anchor="middle")
    yield _text(_LEFT + _HEAT_MAP_WIDTH / 2, bottom + 34, "block", anchor="middle")
    yield from _colour_legend(scale, top, bottom)


def _colour_legend(scale: _LogScale, top: int, bottom: int) -> Iterator[str]:
    x, height, steps = _LEFT + _HEAT_MAP_WIDTH + 24, bottom - top, 40
    for index in range(steps):
        y = bottom - (index + 1) * height / steps
        colour = _colour((index + 0.5) / steps)
        yield f'<rect x="{x}" y="{y:.1f}" width="14" height="{height / steps + 0.5:.1f}" fill="{colour}"/>'
    for tick in scale.ticks:
        yield _text(x + 20, bottom - scale.place(tick) * height + 4, _percent(tick))
    yield _text(x, top - 12, "relative L2")


def _chart(sensitivity: Sensitivity, groups: Sequence[str], top: int) -> Iterator[str]:
    """Yield the elements of the chart: a line for each kind of linear, with the errors of all blocks added up.

    The horizontal axis runs from pure noise on the left to the last step.
    """
    sigmas = sensitivity.mean_sigmas()
    lines = {group: sensitivity.by_step(sensitivity.of_group(group)) for group in groups}
    scale = _LogScale.of([error for errors in lines.values() for error in errors])
    bottom, right = top + _CHART_HEIGHT, _LEFT + _HEAT_MAP_WIDTH

    def place(sigma: float, error: float) -> str:
        return f"{_LEFT + (1 - sigma) * _HEAT_MAP_WIDTH:.1f},{bottom - scale.place(error) * _CHART_HEIGHT:.1f}"

    yield _text(_LEFT, top - 12, "by sigma: each kind of linear, the squares of its blocks added up", weight="bold")
    for tick in scale.ticks:
        y = bottom - scale.place(tick) * _CHART_HEIGHT
        yield f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="{_GRID}"/>'
        yield _text(_LEFT - 8, y + 4, _percent(tick), anchor="end")
    yield f'<path d="M{_LEFT},{top} V{bottom} H{right}" fill="none" stroke="{_INK}"/>'
    for tenth in range(0, 11, 2):
        yield _text(right - tenth / 10 * _HEAT_MAP_WIDTH, bottom + 18, f"{tenth / 10:g}", anchor="middle")
    yield _text(_LEFT + _HEAT_MAP_WIDTH / 2, bottom + 38, "sigma: noise to picture", anchor="middle")
    middle = top + _CHART_HEIGHT / 2
    yield (
        f'<text x="{_LEFT - 80}" y="{middle}" text-anchor="middle" transform="rotate(-90 {_LEFT - 80} {middle})">'
        "relative L2</text>"
    )
    for index, (group, errors) in enumerate(lines.items()):
        colour = _LINES[index % len(_LINES)]
        points = " ".join(place(sigma, error) for sigma, error in zip(sigmas, errors, strict=True))
        yield (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2">'
            f"<title>{group}</title></polyline>"
        )
        for point in points.split():
            cx, cy = point.split(",")
            yield f'<circle cx="{cx}" cy="{cy}" r="2.5" fill="{colour}"/>'
        x1, y1 = right + 24, top + 8 + index * 22
        yield f'<line x1="{x1}" y1="{y1}" x2="{x1 + 24}" y2="{y1}" stroke="{colour}" stroke-width="3"/>'
        yield _text(x1 + 32, y1 + 4, group)


def _colour(share: float) -> str:
    channels = (round(pale + (dark - pale) * share) for pale, dark in zip(_PALEST, _DARKEST, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in channels)


def _percent(value: float) -> str:
    return f"{100 * value:.2g}%"


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">'
        f"{escape(text)}</text>"
    )
