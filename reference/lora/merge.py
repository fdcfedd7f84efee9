"""Adapters merged into a component: every key of a file must match a linear of the component.

Opening reads only headers and alphas. The products are added when the weights are read (`tensor_blocks`), so memory
holds the factors of one weight at a time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from qwen_image_engine.engines.core.dtypes import STORED, STORED_FLOATS
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.reference.lora.keys import Part, linear_names, split_key
from qwen_image_engine.reference.lora.scaling import METADATA, AdapterConfig
from qwen_image_engine.reference.storage.merged_tensor import LowRank, MergedTensor
from qwen_image_engine.reference.storage.single_file import halves
from qwen_image_engine.reference.storage.stored_network import StoredNetwork, counted
from qwen_image_engine.reference.storage.tensor_file import TensorInfo, read_header, read_metadata

Parts = Mapping[Part, TensorInfo]

_NUMBERS = ("F64", "F32", "F16", "BF16", "I64", "I32")
"""Dtypes that a scalar of a LoRA file may have."""


def merge(component: StoredNetwork, files: Sequence[LoraFile]) -> StoredNetwork:
    """Return the component with the updates of all `files` in its weights.

    Raises:
        QwenImageError: a file is missing, damaged, or no adapter; or its keys do not fit the component
            (`low_rank_updates` lists the conditions).
    """
    updates: dict[str, list[LowRank]] = {}
    for file in files:
        for name, update in low_rank_updates(component, file).items():
            updates.setdefault(name, []).append(update)
    merged = {name: MergedTensor.of(component.tensors[name], tuple(found)) for name, found in updates.items()}
    return replace(component, tensors={**component.tensors, **merged})


def low_rank_updates(component: StoredNetwork, file: LoraFile) -> dict[str, LowRank]:
    """Return the update of every weight that an adapter changes, by the name of the weight.

    Raises:
        QwenImageError: the file is missing, damaged, or no adapter; a key has no known form, belongs to no linear of
            the component, lacks its counterpart, or occurs twice; or a shape, dtype or alpha does not fit.
    """
    if not file.path.is_file():
        state = "is a folder" if file.path.is_dir() else "does not exist"
        raise QwenImageError(f"{file.path}: {state}, expected an adapter as FILE or FILE:SCALE")
    config = AdapterConfig.from_metadata(file.path, read_metadata(file.path))
    updates: dict[str, LowRank] = {}
    for linear, parts in _linears(component, file.path).items():
        down, up = parts["down"], parts["up"]
        factor = file.scale * _factor(file.path, linear, parts, config)
        for weight, rows in _targets(component, file.path, linear, down, up):
            if weight in updates:
                raise QwenImageError(f"{file.path}: keys {updates[weight].up.name!r} and {up.name!r} are of one weight")
            updates[weight] = LowRank(down, rows, factor)
    return updates


def _linears(component: StoredNetwork, path: Path) -> Mapping[str, Parts]:
    """Return the entries of a file by linear. Every linear has "down" and "up"."""
    names = linear_names(name for name, tensor in component.tensors.items() if len(tensor.shape) == 2)
    found: dict[str, dict[Part, TensorInfo]] = {}
    unknown, unmatched, repeated = [], [], []
    for key, entry in read_header(path).items():
        split = split_key(key)
        if split is None:
            unknown.append(key)
        elif split[0] not in names:
            unmatched.append(key)
        elif split[1] in (parts := found.setdefault(names[split[0]], {})):
            repeated.append(key)
        else:
            parts[split[1]] = entry
    alone = [entry.name for parts in found.values() if not {"down", "up"} <= set(parts) for entry in parts.values()]
    faults = [
        counted(what, keys)
        for what, keys in (
            ("of no form that is known", unknown),
            ("of no linear of the transformer", unmatched),
            ("without a counterpart", alone),
            ("that are there in another spelling", repeated),
        )
        if keys
    ]
    if faults:
        raise QwenImageError(
            f"{path}: its keys are not those of low-rank updates of {component.layout.class_name}: "
            f"{'; '.join(faults)}; {len(found)} linears are matched"
        )
    if not found:
        raise QwenImageError(f"{path}: holds no tensors, expected low-rank updates")
    return found


def _targets(
    component: StoredNetwork, path: Path, linear: str, down: TensorInfo, up: TensorInfo
) -> list[tuple[str, TensorInfo]]:
    """Return the weights of a linear, each with its rows of `up`. Two stacked linears have two weights."""
    weights = [f"{name}.weight" for name in halves(linear) or (linear,)]
    shapes = [component.tensors[weight].shape for weight in weights]
    rows, columns, rank = sum(shape[0] for shape in shapes), shapes[0][1], down.shape[0] if down.shape else 0
    for entry, expected in ((down, (rank, columns)), (up, (rows, rank))):
        if entry.shape != expected or rank == 0:
            raise QwenImageError(
                f"{path}: tensor {entry.name!r} is {entry.shape}, expected "
                f"({'rank' if entry is down else rows}, {columns if entry is down else rank or 'rank'})"
            )
        if entry.dtype not in STORED_FLOATS:
            raise QwenImageError(f"{path}: tensor {entry.name!r} has dtype {entry.dtype}, expected BF16, F16 or F32")
    first, targets = 0, []
    for weight, (count, _) in zip(weights, shapes, strict=True):
        targets.append((weight, up if count == rows else up.rows(up.name, first, count)))
        first += count
    return targets


def _factor(path: Path, linear: str, parts: Parts, config: AdapterConfig | None) -> float:
    rank = parts["down"].shape[0] if parts["down"].shape else 0
    if "alpha" not in parts:
        return 1.0 if config is None or rank == 0 else config.factor(linear, rank)
    if config is not None:
        raise QwenImageError(f"{path}: alpha is in {parts['alpha'].name!r} and in {METADATA}, expected one of them")
    return _number(path, parts["alpha"]) / max(rank, 1)


def _number(path: Path, entry: TensorInfo) -> float:
    """Read the value of a tensor with one element."""
    if entry.elements != 1 or entry.dtype not in _NUMBERS:
        raise QwenImageError(f"{path}: tensor {entry.name!r} is {entry.dtype} {entry.shape}, expected one number")
    try:
        with entry.file.open("rb") as file:
            file.seek(entry.offset)
            value = np.frombuffer(file.read(entry.nbytes), STORED[entry.dtype].numpy)
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if entry.dtype == "BF16":
        value = (value.astype("<u4") << 16).view("<f4")
    number = float(value[0])
    if not math.isfinite(number):
        raise QwenImageError(f"{path}: tensor {entry.name!r} is {number}, expected a finite number")
    return number
