"""The stages that a benchmark tells apart, and the seconds of each in one picture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.runtime.system.memory_use import MemoryUse
from qwen_image_engine.runtime.timing import Timing

STAGES = (
    "load",
    "vision",
    "vae_encoder",
    "encode",
    "prefix",
    "prefix_image",
    "first_step",
    "prefix_to_first_step",
    "step",
    "decode",
    "rest",
    "total",
)
"""Stages in the order in which they run. "prefix_to_first_step" is the sum of prefix and first step, for comparison
with a contender whose first step computes the prefix. "rest" is the time outside all networks: the tokenizer, tables,
noise, and the sampler's arithmetic."""

COMPARED = tuple(stage for stage in STAGES if stage != "rest")
"""Stages for which ratios are computed. The rest is a small difference of large numbers, and the total includes it."""

STEADY_STEP = "step"
"""The stage of all steps except the first. In the first step a backend settles its memory."""

_STAGE = {row.name: row.name if row.needs_reference_images else row.stage for row in COMPONENTS.values()} | {
    "vae_decoder": "decode"
}
"""Stages by component. Each component for reference images is a separate stage. `vae_decoder` is the whole decoder of
contenders that do not divide it."""

Sample = Mapping[str, tuple[float, ...]]
"""Seconds of one picture by stage: one number for each stage, but for "step" one number for every steady step."""


def sample(entries: Sequence[Timing], total_s: float, *, prefix_in_first_step: bool = False) -> Sample:
    """Return the seconds of one picture by stage. Stages that did not run are left out.

    Args:
        entries: timings of the engines, without guidance: each run of step or joint is one step.
        total_s: seconds of the whole call.
        prefix_in_first_step: whether the contender computes keys and values of the prefix in its first step.
    """
    sums: dict[str, float] = {}
    steps: list[float] = []
    for entry in entries:
        stage = "load" if entry.kind == "load" else _STAGE[entry.component]
        if stage == STEADY_STEP:
            steps.append(entry.seconds)
        else:
            sums[stage] = sums.get(stage, 0.0) + entry.seconds
    spent = sum(sums.values()) + sum(steps)
    if steps:
        before = sum(sums.get(stage, 0.0) for stage in ("prefix", "prefix_image"))
        sums["prefix_to_first_step"] = before + steps[0]
        if not prefix_in_first_step:
            sums["first_step"] = steps[0]
    found: dict[str, tuple[float, ...]] = {stage: (seconds,) for stage, seconds in sums.items()}
    found |= {"rest": (total_s - spent,), "total": (total_s,)}
    if steps[1:]:
        found[STEADY_STEP] = tuple(steps[1:])
    return {stage: found[stage] for stage in STAGES if stage in found}


def stage_peaks(entries: Iterable[Timing]) -> dict[str, MemoryUse]:
    """Return the peak memory of the process in each stage, from the entries that were watched. Steps are one stage."""
    found: dict[str, MemoryUse] = {}
    for entry in entries:
        if entry.peak is not None:
            stage = "load" if entry.kind == "load" else _STAGE[entry.component]
            found[stage] = entry.peak.peak(found.get(stage))
    return {stage: found[stage] for stage in STAGES if stage in found}
