"""The kernels of a bundle's plans as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_image_engine.engines.core.components import EVERY_STEP
from qwen_image_engine.engines.tensorrt.kernels.roofline import Estimate
from qwen_image_engine.runtime.system.text import size_text, table
from qwen_image_engine.runtime.tools.kernels.result import NOT_TIMED, KernelReport, Part, ProfileKernels, Totals

UNKNOWN = "not known"


def lines_of(found: KernelReport) -> Iterator[str]:
    """Yield the report: all profiles in one table, then the kinds of kernels of what runs every step."""
    yield f"kernels of {found.bundle} ({found.target}), by the account of {', '.join(found.builders)}"
    yield "bytes are those of activations read and written, at the optimum of each profile; weights apart"
    if found.card is not None:
        yield f"estimates for {found.card.text}: {NOT_TIMED}"
        if found.foreign:
            yield f"✗ {found.foreign_text}"
    yield ""
    yield from table([head(found), *(summary_row(found, item) for item in found.profiles)], right=range(2, 10))
    for item in found.profiles:
        if item.component in EVERY_STEP:
            yield from _details(found, item)


def head(found: KernelReport) -> tuple[str, ...]:
    """Return the headings of the table of all profiles."""
    return (
        "component",
        "profile",
        "kernels",
        "moved",
        "weights",
        "operations",
        "of a block: kernels",
        "moved",
        "least",
        "times",
        *(() if found.card is None else (f"time, and what bounds it ({NOT_TIMED})",)),
    )


def summary_row(found: KernelReport, item: ProfileKernels) -> tuple[str, ...]:
    """Return the row of a profile below `head`."""
    whole, block = item.whole.total, item.block
    of_block = ("", "", "", "")
    if block is not None:
        times = block.times_least
        of_block = (
            str(block.part.total.kernels),
            bytes_text(block.part.total.moved),
            bytes_text(block.least_bytes),
            UNKNOWN if times is None else f"{times:.2f}",
        )
    return (
        f"{item.component} ({', '.join(item.capabilities)})",
        item.profile,
        str(whole.kernels),
        bytes_text(whole.moved),
        bytes_text(whole.weights),
        flops_text(whole.flops),
        *of_block,
        *(() if found.card is None else (estimate_text(whole.estimate),)),
    )


def _details(found: KernelReport, item: ProfileKernels) -> Iterator[str]:
    yield ""
    yield f"{item.component} ({', '.join(item.capabilities)}), profile {item.profile} at {item.sizes_text}"
    if not item.sizes_known:
        yield "  ✗ the account does not give the size of every tensor: traffic of some kernels is not known"
    if item.block is not None:
        block = item.block
        yield f"  one block, of {block.blocks} between the first attention and the last, {block.alike} of them alike:"
        yield from _part(found, block.part)
        if block.least_bytes and block.times_least:
            yield f"    {block.times_least:.2f} times the least, {size_text(block.least_bytes)}"
    if item.ends is not None:
        yield "  ends, before the first attention is done and behind the last (one block's kernels among them):"
        yield from _part(found, item.ends)
    yield "  all:"
    yield from _part(found, item.whole)


def _part(found: KernelReport, part: Part) -> list[str]:
    rows = [kinds_head(found), *kinds_rows(found, part)]
    return [f"    {line}" for line in table(rows, right=range(1, 6))]


def kinds_head(found: KernelReport) -> tuple[str, ...]:
    """Return the headings of a table by kind."""
    return (
        "kind",
        "kernels",
        "read",
        "written",
        "weights",
        "operations",
        "formats",
        *(() if found.card is None else (f"time, and what bounds it ({NOT_TIMED})",)),
    )


def kinds_rows(found: KernelReport, part: Part) -> list[tuple[str, ...]]:
    """Return the rows by kind, one for all but products and attentions, and one for all."""
    rows = [*part.kinds.items(), ("beside products and attention", part.beside), ("all", part.total)]
    return [_kind_row(found, name, totals) for name, totals in rows]


def _kind_row(found: KernelReport, name: str, totals: Totals) -> tuple[str, ...]:
    return (
        name,
        str(totals.kernels),
        bytes_text(totals.read),
        bytes_text(totals.written),
        bytes_text(totals.weights) if totals.weights else "",
        flops_text(totals.flops) if totals.flops != 0 else "",
        ", ".join(totals.formats),
        *(() if found.card is None else (estimate_text(totals.estimate),)),
    )


def estimate_text(estimate: Estimate | None) -> str:
    """Return the time and what bounds it; `UNKNOWN` for None."""
    if estimate is None or estimate.bound is None:
        return UNKNOWN
    lacking = f", {estimate.without_peak} without a peak" if estimate.without_peak else ""
    return f"{1000 * estimate.seconds:.3f} ms, {estimate.bound}{lacking}"


def bytes_text(count: int | None) -> str:
    """Return bytes as a text; `UNKNOWN` for None."""
    return UNKNOWN if count is None else size_text(count)


def flops_text(count: int | None) -> str:
    """Return operations as a text in tera-, giga- or mega-operations; `UNKNOWN` for None."""
    if count is None:
        return UNKNOWN
    unit, scale = next(((unit, scale) for unit, scale in (("T", 10**12), ("G", 10**9)) if count >= scale), ("M", 10**6))
    return f"{count / scale:.1f} {unit}"
