"""Settings of a benchmark, as the tests of its result and of its page have it."""

from typing import Any

from qwen_image_engine.runtime.tools.bench.settings import Settings


def settings(**given: Any) -> Settings:
    """An engine on one case; `given` says the rest, `sizes` and `rounds` among it."""
    return Settings(
        **{
            "bundle": "bundle",
            "checkpoint": None,
            "engines": ("onnxruntime",),
            "baselines": ("diffusers",),
            "steps": (None,),
            "batches": (1,),
            "references": (0,),
            "reference_resolution": 1024,
            "threads": None,
            "memory": "resident",
            **given,
        }
    )
