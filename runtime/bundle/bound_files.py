"""The check of the files of weights that a plan takes as inputs, by their headers, before the plan is loaded."""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.engines.core.contract import describe_shape
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.weight_file import StoredTensor
from qwen_image_engine.engines.plans.bound_weight import BoundWeight, WeightPiece
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
    for weight, piece in ((item, piece) for item in plan.bound for piece in item.pieces):
        if piece.file not in manifest.files or weight.dtype not in DTYPES:
            raise QwenImageError(
                f"{component}: its engine takes {piece.name} as {weight.dtype} from {folder / piece.file}, and this "
                f"bundle has no such weight; build it again with: {rebuild}"
            )
        if piece.file not in headers:
            try:
                check_files(folder, manifest, [piece.file])
                headers[piece.file]
            except QwenImageError as error:
                raise QwenImageError(f"{component} takes the weight {piece.name} from {error}") from error
        _check_place(headers, folder, component, weight, piece, rebuild)


def _check_place(
    headers: WeightHeaders, folder: Path, component: str, weight: BoundWeight, piece: WeightPiece, rebuild: str
) -> None:
    dtype = DTYPES[weight.dtype].safetensors
    file = headers[piece.file]
    if file.holds(StoredTensor(piece.name, dtype, piece.shape, piece.offset, weight.nbytes(piece))):
        return
    held = file.at(piece.offset)
    there = f"{held.name}, {held.dtype} {describe_shape(held.shape)} from byte {held.offset}" if held else "nothing"
    raise QwenImageError(
        f"{component}: its engine takes {piece.name}, {dtype} {describe_shape(piece.shape)}, from byte "
        f"{piece.offset} of {folder / piece.file}, whose header has {there}; build it again with: {rebuild}"
    )
