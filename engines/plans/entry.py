"""The manifest's entry of a TensorRT plan: its file, its builder, its GPU and its shapes."""

from collections.abc import Mapping
from dataclasses import dataclass

from qwen_image_engine.engines.plans.bound_weight import BoundWeight

Shape = tuple[int, ...]

BUILDERS = ("tensorrt", "tensorrt-rtx")
"""Names of the backends that build plans and run them."""


PLAN = ".plan"
"""Ending of the file of a plan."""

LAYERS = ".layers.json"
"""Ending of the file with the compiler's account of a plan's layers."""


@dataclass(frozen=True)
class Profile:
    """An optimization profile: minimum, optimum, maximum shape of every input by name. `name` is the bucket's name."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class PlanEntry:
    """The manifest's entry of a component's plan.

    Attributes:
        file: name in `Manifest.files`, which has size and SHA-256 of the plan.
        key: SHA-256 of everything that the plan was built from: graph, weights, profiles, options, builder and, for
            TensorRT, GPU and driver.
        builder: name of the backend that built the plan and runs it, a name of `BUILDERS`.
        version: version of the builder, "11.4.0.106".
        compute_capabilities: compute capabilities of the GPUs that the plan runs on, in order. TensorRT builds for the
            one of the GPU that it runs on.
        gpu: name of the device that the plan was built on; None for TensorRT for RTX, which needs none.
        driver: driver version in CUDA's terms, 13000 for CUDA 13.0; None for TensorRT for RTX.
        profiles: optimization profiles in the order in which the plan numbers them.
        stripped: whether weights are missing from the plan and come from the bundle's own files by refitting.
        weight_streaming: whether weights may stay on the host.
        scratch_bytes: bytes of activations, by profile.
        fused_attentions: fused attentions that the audit counted in the plan.
        fp8_products: products in FP8 that the audit counted in the plan.
        int8_products: products in INT8 that the audit counted in the plan.
        layers: name in `Manifest.files` of the compiler's account of the plan's layers; None for plans of older
            versions.
        bound: weights that are inputs of the plan, in the order of its inputs; empty if the plan holds its weights.
    """

    file: str
    key: str
    builder: str
    version: str
    compute_capabilities: tuple[str, ...]
    gpu: str | None
    driver: int | None
    profiles: tuple[Profile, ...]
    stripped: bool = False
    weight_streaming: bool = False
    scratch_bytes: tuple[int, ...] = ()
    fused_attentions: int = 0
    fp8_products: int = 0
    int8_products: int = 0
    layers: str | None = None
    bound: tuple[BoundWeight, ...] = ()

    @property
    def place(self) -> tuple[str, tuple[str, ...]]:
        """Builder and compute capabilities. A component has one plan at each place."""
        return self.builder, self.compute_capabilities

    @property
    def listed(self) -> tuple[str, ...]:
        """Names in `Manifest.files` of the files that belong to the plan."""
        return (self.file,) if self.layers is None else (self.file, self.layers)
