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
"""In the order in which they run. "prefix_to_first_step" is both, and what can be compared with a way whose first step
computes the prefix; "rest" is what no network took: the tokenizer, tables, noise, the sampler's own arithmetic."""

COMPARED = tuple(stage for stage in STAGES if stage != "rest")
"""Stages that ratios are made of. The rest is a small difference of large numbers, and within the total."""

STEADY_STEP = "step"
"""Every step but the first, in which a backend settles its memory."""

_STAGE = {row.name: row.name if row.needs_reference_images else row.stage for row in COMPONENTS.values()} | {
    "vae_decoder": "decode"
}
"""Stages by component. Components for reference images are stages of their own; `vae_decoder` is the whole decoder of
contenders that do not divide it."""

Sample = Mapping[str, tuple[float, ...]]
"""Seconds of one picture by stage: one number each, but for "step", which has one for every steady step."""


def sample(entries: Sequence[Timing], total_s: float, *, prefix_in_first_step: bool = False) -> Sample:
    """Seconds of one picture by stage; stages that did not run are left out.

    Args:
        entries: what its engines took, without guidance: each run of step or joint is one step.
        total_s: of the whole call.
        prefix_in_first_step: whether this way computes keys and values of the prefix in its first step.
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
    """The most memory of the process in each stage, of entries that were watched; steps are one stage."""
    found: dict[str, MemoryUse] = {}
    for entry in entries:
        if entry.peak is not None:
            stage = "load" if entry.kind == "load" else _STAGE[entry.component]
            found[stage] = entry.peak.peak(found.get(stage))
    return {stage: found[stage] for stage in STAGES if stage in found}
