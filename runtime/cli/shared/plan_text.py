"""An engine of a bundle in one line, as `build` and `inspect` show it."""

from collections.abc import Mapping

from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.manifest import FileEntry
from qwen_image_engine.runtime.cli.shared.result import size_text


def plan_text(plan: PlanEntry, files: Mapping[str, FileEntry]) -> str:
    """Size, profiles, what was counted in it, and how it was built."""
    ways = (("without weights", plan.stripped), ("weights from the host", plan.weight_streaming))
    words = [
        size_text(files[plan.file].bytes),
        f"profiles {', '.join(profile.name for profile in plan.profiles)}",
        f"{plan.fused_attentions} fused attentions",
        f"{plan.fp8_products} products in FP8, {plan.int8_products} in INT8",
        f"up to {size_text(max(plan.scratch_bytes, default=0))} of scratch memory",
        *(word for word, true in ways if true),
    ]
    return "; ".join(words)
