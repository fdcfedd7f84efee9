"""Texts and figures that several verbs print: a request's time by stage, and a plan's facts."""

from collections.abc import Mapping, Sequence
from itertools import islice
from statistics import median

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.bound_lists import bound_bytes
from qwen_image_engine.runtime.bundle.manifest_entries import FileEntry
from qwen_image_engine.runtime.system.text import size_text
from qwen_image_engine.runtime.timing import Timing


def stage_seconds(entries: Sequence[Timing], evaluations: Sequence[int]) -> dict[str, float]:
    """Return the seconds of each stage of one request, in the order of execution.

    A stage that did not run has 0. The first step is separate, because a backend allocates its memory in it. `step_s`
    is the median of the other steps, or the first step if there is only one. With guidance an evaluation is two
    runs, and encoder and prefix run twice.

    Args:
        entries: timings of the request.
        evaluations: number of evaluations of the network in each step.
    """
    names = ("load_s", "references_s", "encode_s", "prefix_s", "first_step_s", "step_s", "decode_s")
    totals = dict.fromkeys(names, 0.0)
    runs = []
    for entry in entries:
        if entry.kind == "load":
            totals["load_s"] += entry.seconds
        elif entry.kind == "preview":
            totals["preview_s"] = totals.get("preview_s", 0.0) + entry.seconds
        elif (stage := COMPONENTS[entry.component].stage) == "step":
            runs.append(entry.seconds)
        else:
            totals[f"{stage}_s"] += entry.seconds
    if runs:
        passes, left = len(runs) // sum(evaluations), iter(runs)
        taken = [sum(islice(left, count * passes)) for count in evaluations]
        totals["first_step_s"] = taken[0]
        totals["step_s"] = median(taken[1:] or taken)
    return totals


def plan_text(plan: PlanEntry, files: Mapping[str, FileEntry]) -> str:
    """Return the facts of a plan as text: size, weights, profiles, counts of its layers, scratch memory and options."""
    ways = (("without weights", plan.stripped), ("weights from the host", plan.weight_streaming))
    bound = f", beside {size_text(bound_bytes(plan.bound))} of bound weights" if plan.bound else ""
    words = [
        size_text(files[plan.file].bytes) + bound,
        f"profiles {', '.join(profile.name for profile in plan.profiles)}",
        f"{plan.fused_attentions} fused attentions",
        f"{plan.fp8_products} products in FP8, {plan.int8_products} in INT8",
        f"up to {size_text(max(plan.scratch_bytes, default=0))} of scratch memory",
        *(word for word, true in ways if true),
    ]
    return "; ".join(words)
