"""`qwen-image compare`: the changes beyond the noise between two results of bench or verify."""

import argparse
from collections import Counter
from pathlib import Path

from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.system.text import size_text, table

SUMMARY = "what changed between two results of bench or verify, beyond the noise"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("first", type=Path, metavar="A.json", help="what bench or verify --output wrote, the older one")
    parser.add_argument("second", type=Path, metavar="B.json", help="the newer one, of the same verb")
    parser.add_argument("--all", action="store_true", help="also list what did not change")


def execute(options: argparse.Namespace) -> VerbResult:
    """Compare the two results. The exit code is 1 if a figure is slower or worse beyond the noise, or is lost."""
    from qwen_image_engine.runtime.tools.compare.compare import compare

    found = compare(options.first, options.second)
    shown = [row for row in found.rows if options.all or row.change != "same"]
    rows = [("", "where", "what", "before", "after", "times better", "interval")]
    rows += [
        (
            row.change,
            row.where,
            row.what,
            _figure(row.before, row.unit),
            _figure(row.after, row.unit),
            "" if row.ratio is None else _ratio(row.ratio),
            row.reason if row.low is None or row.high is None else f"{row.low:.2f}x to {row.high:.2f}x",
        )
        for row in shown
    ]
    counts = Counter(row.change for row in found.rows)
    summary = ", ".join(f"{count} {change}" for change, count in counts.items())
    reasons = dict.fromkeys((row.where, row.reason) for row in found.rows if row.reason and row.low is not None)
    lines = [
        *(f"note: {note}" for note in found.notes),
        *(f"✗ not in the second: {where}" for where in found.lost),
        *(table(rows, right=(3, 4, 5)) if shown else []),
        *(f"{where}: {reason}" for where, reason in reasons),
        f"{len(found.rows)} figures in both: {summary}",
        f"test: {found.test}",
    ]
    return VerbResult(found.to_json(), lines, 1 if found.failed else 0)


def _ratio(ratio: float) -> str:
    return f"{ratio:.2f}x" if 0.1 <= ratio < 1000 else f"{ratio:.3g}x"


def _figure(value: float | None, unit: str) -> str:
    if unit == "passed":
        return "passed" if value else "failed"
    if value is None:
        return "not finite"
    if unit == "bytes":
        return size_text(int(value))
    forms = {"s": f"{value:.4g} s", "dB": f"{value:.1f} dB", "FLIP": f"{value:.4f}", "accepted": f"{value:.1%}"}
    return forms.get(unit, f"{value:.2e}")
