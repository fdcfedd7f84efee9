"""The page of `inspect --kernels`: bars of traffic, and of time on a card, of every profile."""

from __future__ import annotations

from collections.abc import Iterator

from qwen_image_engine.engines.tensorrt.kernels.kinds import KINDS
from qwen_image_engine.runtime.system.text import command_line, size_text
from qwen_image_engine.runtime.tools.kernels.result import (
    CORE,
    NOT_TIMED,
    BlockPart,
    KernelReport,
    Part,
    ProfileKernels,
)
from qwen_image_engine.runtime.tools.kernels.text import (
    UNKNOWN,
    bytes_text,
    flops_text,
    head,
    kinds_head,
    kinds_rows,
    summary_row,
)
from qwen_image_engine.runtime.tools.report.html import Content, Html, table, tag
from qwen_image_engine.runtime.tools.report.plot import Bar, bars
from qwen_image_engine.runtime.tools.report.sections import commands, facts, more, page, plots, section, short_names

_LEAST = 6
"""Number of the colour of the least that a block needs."""


def kernels_page(found: KernelReport) -> str:
    """Return the page: all profiles in a table, then bars and tables of each."""
    (name,) = short_names([found.bundle])
    card = f" Estimates are for {found.card.text}: {NOT_TIMED}." if found.card else ""
    rows = [summary_row(found, item) for item in found.profiles]
    gpu = () if found.card is None else ("--gpu", found.card.name)
    return page(
        f"{name}: kernels of its plans",
        "qwen-image inspect --kernels",
        f"{found.bundle}: {found.target}, by the account of {', '.join(found.builders)}. Bytes are those of "
        f"activations that kernels read and write, at the optimum of each profile; weights stand apart.{card}",
        _foreign(found),
        section("All profiles", table(head(found), rows, numbers=range(2, 10))),
        [_profile(found, item, index) for index, item in enumerate(found.profiles)],
        _method(found),
        commands(command_line("qwen-image", "inspect", found.bundle, "--kernels", *gpu)),
    )


def _foreign(found: KernelReport) -> Html | str:
    return tag("p", f"{found.foreign_text}.", class_="note") if found.foreign else ""


def _profile(found: KernelReport, item: ProfileKernels, index: int) -> Html:
    title = f"{item.component}, {item.profile} ({', '.join(item.capabilities)})"
    content: list[Content] = [tag("p", f"At {item.sizes_text}, the profile's optimum.", class_="note")]
    if not item.sizes_known:
        content.append(tag("p", "The account does not give the size of every tensor; these are left out of the bars."))
    content.append(_figures(item))
    panels = [*_panels(found, item, f"kernels-{index}")]
    if panels:
        content.append(plots(panels, "All bars of a panel start at 0. Traffic is bytes read and written by kernels."))
    parts = [("All kernels", item.whole)]
    if item.block is not None:
        parts.insert(0, ("One block", item.block.part))
    if item.ends is not None:
        parts.append(("Ends", item.ends))
    tables = [
        table(kinds_head(found), kinds_rows(found, part), numbers=range(1, 6), caption=what) for what, part in parts
    ]
    return section(title, content, more("In numbers", tables))


def _figures(item: ProfileKernels) -> Html:
    figures = {"kernels": str(item.whole.total.kernels), "moved": bytes_text(item.whole.total.moved)}
    if item.whole.total.flops:
        figures["operations"] = flops_text(item.whole.total.flops)
    if item.block is not None:
        block = item.block
        figures["kernels of a block"] = f"{block.part.total.kernels}, {block.alike} of {block.blocks} alike"
        figures["moved by a block"] = bytes_text(block.part.total.moved)
        times = block.times_least
        figures["times the least"] = UNKNOWN if times is None else f"{times:.2f}"
    estimate = item.whole.total.estimate
    if estimate is not None:
        figures[f"all kernels ({NOT_TIMED})"] = f"{1000 * estimate.seconds:.2f} ms"
    return facts(figures)


def _panels(found: KernelReport, item: ProfileKernels, name: str) -> Iterator[Html]:
    if item.block is not None and item.block.part.total.moved:
        yield bars(f"{name}-block", "traffic of one block", [*_traffic(item.block.part), *_least(item.block)])
    if item.whole.total.moved:
        yield bars(f"{name}-all", "traffic of all kernels", _traffic(item.whole))
    if found.card is None:
        return
    parts = [] if item.block is None else [("block", item.block.part)]
    for key, part in [*parts, ("all", item.whole)]:
        if times := _times(part):
            yield bars(f"{name}-time-{key}", f"{key}: {NOT_TIMED}", times)


def _traffic(part: Part) -> list[Bar]:
    found = [(kind, totals) for kind, totals in part.kinds.items() if totals.moved]
    return [
        Bar(f"{kind} ({totals.kernels})", totals.moved or 0, bytes_text(totals.moved), KINDS.index(kind))
        for kind, totals in found
    ]


def _least(block: BlockPart) -> list[Bar]:
    if not block.least_bytes:
        return []
    core = sum(totals.moved or 0 for kind, totals in block.part.kinds.items() if kind in CORE)
    total = block.part.total.moved or 0
    return [
        Bar("products and attention", core, size_text(core), 0),
        Bar("all together", total, size_text(total), 4),
        Bar("least that is needed", block.least_bytes, size_text(block.least_bytes), _LEAST),
    ]


def _times(part: Part) -> list[Bar]:
    return [
        Bar(
            f"{kind}: {totals.estimate.bound}",
            1000 * totals.estimate.seconds,
            f"{1000 * totals.estimate.seconds:.3f} ms (estimate)",
            KINDS.index(kind),
        )
        for kind, totals in part.kinds.items()
        if totals.estimate is not None
    ]


def _method(found: KernelReport) -> Html:
    lines = [
        "A kernel's kind is the greatest thing that it does: product (and convolution), attention, rope, norm, other "
        "arithmetic, quantise, cast, copy. What is not known is other.",
        "A block is the kernels from one attention to the next. The least takes each product and each attention as one "
        "kernel that does everything around it: inputs read once, outputs written once, and the residual stream.",
    ]
    if found.card is not None:
        lines.append(
            "A time is the longer of bytes over bandwidth and operations over the card's peak, kernel by kernel "
            f"(the roofline model): {NOT_TIMED}. Caches, launches and lower clocks are left out."
        )
    return section("How it is counted", [tag("p", line) for line in lines])
