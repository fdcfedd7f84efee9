"""Parity of the reference in bf16 and of engines with the reference in fp32, all on the device."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.gpu.timings import guarded
from benchmarks.gpu.work import relative_l2
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import Contract, contract, split_axis
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import components, dims, forward
from qwen_image_engine.reference.load import load_network

SIZES = {"batch": 1, "text": 77, "prefix": 60, "tokens": 256, "height": 16, "width": 16, "image": 64, "slots": 16}
MASKED_TEXTS = (77, 76, 80)
"""Lengths of a text after an image, whose attention has a mask. Kernels depend on the divisors of the number of keys,
here 201, 200 and 204."""

POSITIONS = 16
"""Rows of the vision tower's position table that the inputs use; every table has more."""

Rows = Iterator[dict[str, Any]]


def component_inputs(spec: Contract, text: int = SIZES["text"]) -> dict[str, np.ndarray]:
    """Return random inputs of a contract, for `text` text tokens. Cosines and sines are of the same angles."""
    rng = np.random.default_rng(0)
    sizes = {**SIZES, "text": text}
    arrays: dict[str, np.ndarray] = {}
    for port in spec.inputs:
        shape = [axis if isinstance(axis, int) else _length(axis, sizes) for axis in port.shape]
        integers = port.dtype == "int64"
        arrays[port.name] = rng.integers(0, POSITIONS, shape) if integers else rng.standard_normal(shape, np.float32)
    for name in [name for name in arrays if name.endswith("cos")]:
        angles = 3 * arrays[name]
        arrays[name], arrays[name.removesuffix("cos") + "sin"] = np.cos(angles), np.sin(angles)
    return arrays


def torch_rows(checkpoint: Checkpoint, device: torch.device, names: tuple[str, ...] | None = None) -> Rows:
    """Compare each component in bf16 with fp32, both on the device and on the same inputs."""

    def row(name: str) -> dict[str, Any]:
        spec = contract(name, dims(checkpoint))
        inputs = {key: torch.from_numpy(array).to(device) for key, array in component_inputs(spec).items()}
        expected, found = (
            forward(spec, _network(checkpoint, name, device, dtype), inputs)
            for dtype in (torch.float32, torch.bfloat16)
        )
        return _facts(checkpoint, name, "torch bf16") | _distance(found, expected)

    for name in names or components(checkpoint):
        yield from guarded(_facts(checkpoint, name, "torch bf16"), lambda name=name: [row(name)])


def engine_rows(
    checkpoint: Checkpoint, bundle: Path, way: str, engine: str, device: torch.device, names: Sequence[str]
) -> Rows:
    """Compare components of a bundle on an engine with the reference in fp32 on the device."""
    from qwen_image_engine.runtime.bundle.bundle import Bundle  # which needs more packages than torch does

    opened = Bundle.open(bundle)

    def row(name: str) -> dict[str, Any]:
        spec = contract(name, dims(checkpoint))
        network = _network(checkpoint, name, device, torch.float32)
        distances = []
        with closing(opened.load_engine(name, engine)) as running:
            for text in MASKED_TEXTS if name == "prefix_image" else (SIZES["text"],):
                inputs = component_inputs(spec, text)
                given = {key: torch.from_numpy(array).to(device) for key, array in inputs.items()}
                expected = forward(spec, network, given)
                outputs: Mapping[str, Any] = running.run(inputs)
                distances.append(_distance([_tensor(outputs[port.name], device) for port in spec.outputs], expected))
        return _facts(checkpoint, name, way) | max(distances, key=lambda found: found["relative_l2"])

    for name in names:
        yield from guarded(_facts(checkpoint, name, way), lambda name=name: [row(name)])


def _facts(checkpoint: Checkpoint, component: str, way: str) -> dict[str, Any]:
    return {"checkpoint": checkpoint.name, "component": component, "way": way}


def _distance(found: Any, expected: Any) -> dict[str, Any]:
    error, cosine = relative_l2(found, expected)
    return {"relative_l2": error, "cosine": cosine}


def _network(checkpoint: Checkpoint, component: str, device: torch.device, dtype: torch.dtype) -> nn.Module:
    return load_network(checkpoint, COMPONENTS[component].network, dtype).to(device)


def _tensor(values: Any, device: torch.device) -> Tensor:
    host = values if isinstance(values, np.ndarray) else values.numpy()
    return torch.from_numpy(np.asarray(host, np.float32)).to(device)


def _length(axis: str, sizes: Mapping[str, int]) -> int:
    factor, name = split_axis(axis)
    return factor * sizes[name]
