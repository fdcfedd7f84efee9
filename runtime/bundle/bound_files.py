"""The check of the files of weights that a plan takes as inputs, by their headers, before the plan is loaded."""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.engines.core.contract import describe_shape
from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.weight_file import StoredTensor
from qwen_image_engine.engines.plans.bound_weight import BoundWeight
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.files import WeightHeaders, check_files
from qwen_image_engine.runtime.bundle.manifest import Manifest


def check_bound_files(folder: Path, manifest: Manifest, component: str, plan: PlanEntry, rebuild: str) -> None:
    """Raise if a file does not hold a weight that a plan takes as an input where the manifest's list has it.

    The files' sizes and headers are compared, as `check_files` does it. The weights' own bytes are hashed when they are
    uploaded. `rebuild` is the command that builds the plan.

    Raises:
        QwenImageError: a file is missing, not regular, or has another size or header than the manifest says; or the
            header has no tensor of this dtype and shape at this place. The text names the tensor.
    """
    headers = WeightHeaders(folder)
    for weight in plan.bound:
        if weight.file not in manifest.files or weight.dtype not in DTYPES:
            raise QwenImageError(
                f"{component}: its engine takes {weight.name} as {weight.dtype} from {folder / weight.file}, and this "
                f"bundle has no such weight; build it again with: {rebuild}"
            )
        if weight.file not in headers:
            try:
                check_files(folder, manifest, [weight.file])
                headers[weight.file]
            except QwenImageError as error:
                raise QwenImageError(f"{component} takes the weight {weight.name} from {error}") from error
        _check_place(headers, folder, component, weight, rebuild)


def _check_place(headers: WeightHeaders, folder: Path, component: str, weight: BoundWeight, rebuild: str) -> None:
    nbytes = size_bytes(weight.shape, weight.dtype)
    dtype = DTYPES[weight.dtype].safetensors
    file = headers[weight.file]
    if file.holds(StoredTensor(weight.name, dtype, weight.shape, weight.offset, nbytes)):
        return
    held = file.at(weight.offset)
    there = f"{held.name}, {held.dtype} {describe_shape(held.shape)} from byte {held.offset}" if held else "nothing"
    raise QwenImageError(
        f"{component}: its engine takes {weight.name}, {dtype} {describe_shape(weight.shape)}, from byte "
        f"{weight.offset} of {folder / weight.file}, whose header has {there}; build it again with: {rebuild}"
    )
