"""Conversion between keys and values of the reference, which are float32, and those that a bundle holds in FP8."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.calibration.quantise.fp8 import LARGEST
from qwen_image_engine.engines.core.contract import CODES, Contract
from qwen_image_engine.engines.core.device_array import Values, on_host
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.bundle.manifest import Manifest


class CacheCodes:
    """The keys and values of one component that are in FP8, with the scales of their blocks' attention."""

    def __init__(self, contract: Contract, manifest: Manifest) -> None:
        """Take the component's contract and its bundle's manifest.

        Raises:
            QwenImageError: the manifest has no scales for keys or values in FP8.
        """
        step = manifest.components.get(manifest.facts.step)
        known: dict[str, float] = {}
        for block, scales in (step.fp8_attention if step is not None else {}).items():
            index = block.rpartition(".")[2]
            known |= {f"key_{index}": scales.key, f"value_{index}": scales.value}
        self._scales: dict[str, float] = {}
        for spec in (*contract.inputs, *contract.outputs):
            if spec.dtype == CODES:
                if spec.layer_tensor not in known:
                    raise QwenImageError(
                        f"{contract.component}: {spec.name} is in FP8 and the manifest has no scale of it, which is "
                        "the scale of an attention of the step; export the bundle again"
                    )
                self._scales[spec.name] = known[spec.layer_tensor]

    def inputs(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """Return a component's inputs as its engine takes them: float32 keys and values in FP8 become codes."""
        return {
            name: to_codes(array, self._scales[name]) if name in self._scales else array
            for name, array in values.items()
        }

    def output(self, name: str, found: Values) -> Array:
        """Return an output of the engine on the host: codes become float32."""
        array = on_host(found)
        return from_codes(array, self._scales[name]) if name in self._scales else array


def to_codes(values: Array, scale: float) -> NDArray[np.uint8]:
    """Return the codes of E4M3 nearest to `values` / `scale`, as QuantizeLinear does: beyond 448 they saturate."""
    scaled = (np.asarray(values, np.float32) / np.float32(scale)).clip(-LARGEST, LARGEST)
    return scaled.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def from_codes(codes: NDArray[Any], scale: float) -> NDArray[np.float32]:
    """Return codes times `scale` in float32."""
    return codes.view(ml_dtypes.float8_e4m3fn).astype(np.float32) * np.float32(scale)
