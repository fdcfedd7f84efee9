"""A built engine as the manifest keeps it: where its file is, what built it, for which GPU and which shapes."""

from collections.abc import Mapping
from dataclasses import dataclass

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """One optimization profile: least, best and largest shape of every input by name; `name` is its bucket's."""

    name: str
    shapes: Mapping[str, tuple[Shape, Shape, Shape]]


@dataclass(frozen=True)
class PlanEntry:
    """One component's engine file.

    Attributes:
        file: name in `Manifest.files`, which has its size and SHA-256.
        key: SHA-256 of all that it was built from: graph, weights, profiles, options, TensorRT, GPU, driver.
        tensorrt: version of the builder, "11.4.0.106".
        gpu: name of the device that it was built on.
        compute_capability: of that device, "9.0".
        driver: its version in CUDA's terms, 13000 for CUDA 13.0.
        profiles: in the order in which the engine numbers them.
        stripped: whether weights are missing and come from the bundle's own files by refitting.
        weight_streaming: whether weights may stay on the host.
        scratch_bytes: by profile, what the engine takes for its activations.
        fused_attentions: counted in the engine, as are the next two.
        fp8_products: products in FP8.
        int8_products: products in INT8.
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
