"""The manifest's entry of a TensorRT plan: its file, its builder, its GPU and its shapes."""

from collections.abc import Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]


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
        key: SHA-256 of everything that the plan was built from: graph, weights, profiles, options, TensorRT, GPU,
            driver.
        tensorrt: version of the builder, "11.4.0.106".
        gpu: name of the device that the plan was built on.
        compute_capability: compute capability of that device, "9.0".
        driver: driver version in CUDA's terms, 13000 for CUDA 13.0.
        profiles: optimization profiles in the order in which the plan numbers them.
        stripped: whether weights are missing from the plan and come from the bundle's own files by refitting.
        weight_streaming: whether weights may stay on the host.
        scratch_bytes: bytes of activations, by profile.
        fused_attentions: fused attentions that the audit counted in the plan.
        fp8_products: products in FP8 that the audit counted in the plan.
        int8_products: products in INT8 that the audit counted in the plan.
    """

    file: str
    key: str
    tensorrt: str
    gpu: str
    compute_capability: str
    driver: int
    profiles: tuple[Profile, ...]
    stripped: bool = False
    weight_streaming: bool = False
    scratch_bytes: tuple[int, ...] = ()
    fused_attentions: int = 0
    fp8_products: int = 0
    int8_products: int = 0
