"""Checks of a model file, a loaded graph, and the arrays of a run against the contract of a component."""

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from qwen_image_engine.engines.core import protobuf
from qwen_image_engine.engines.core.contract import CODES, Contract, TensorSpec, describe_shape, split_axis
from qwen_image_engine.engines.core.device_array import DeviceArray, Values, dtype_name
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import open_regular

Array = NDArray[Any]

_ON_HOST = frozenset({("float32", "bfloat16"), ("float32", "float16"), ("uint8", CODES)})
"""Dtypes of host arrays that stand for a dtype of a contract."""


@dataclass(frozen=True)
class PortFacts:
    """Dtype and shape of an input or output of a loaded graph.

    `shape` is None if the rank is not fixed, an axis is None if its size is not fixed.
    """

    dtype: str
    shape: tuple[int | None, ...] | None


def check_model_file(contract: Contract, model: Path) -> None:
    """Raise if `model` is not a complete ONNX file. The check comes before a backend reads the file.

    OpenVINO would offer such a file to its readers of other formats, which write to stderr. Only the outermost fields
    are read.

    Raises:
        QwenImageError: the file is missing, unreadable, no regular file, cut short, or no ONNX model.
    """
    try:
        with open_regular(model) as file:
            whole = _is_model(file, os.fstat(file.fileno()).st_size)
    except OSError as error:
        remedy = "; export the bundle again" if isinstance(error, FileNotFoundError) else ""
        raise QwenImageError(f"{contract.component}: cannot read {model}: {error.strerror}{remedy}") from error
    if not whole:
        raise QwenImageError(f"{contract.component}: {model} is no ONNX model, or is damaged; export the bundle again")


def check_graph(
    contract: Contract, model: Path, inputs: Mapping[str, PortFacts], outputs: Mapping[str, PortFacts]
) -> None:
    """Compare inputs and outputs of a loaded graph with the contract: names, dtypes, ranks, fixed sizes.

    An axis that is free in the contract must not be fixed in the graph. An axis that is fixed in the contract may be
    unknown in the graph.

    Raises:
        QwenImageError: graph and contract differ.
    """
    for side, specs, ports in (("input", contract.inputs, inputs), ("output", contract.outputs, outputs)):
        where = f"{contract.component}: {model} is another graph than its contract's"
        _check_names(where, side, specs, ports)
        for spec in specs:
            port = ports[spec.name]
            if port.dtype != spec.dtype or not _fits(spec.shape, port.shape):
                found = "(…)" if port.shape is None else describe_shape(port.shape)
                raise QwenImageError(
                    f"{where}: {side} {spec.name} is {port.dtype} {found}, expected {spec.describe()}; "
                    "export the bundle again"
                )


def check_inputs(contract: Contract, inputs: Mapping[str, Values]) -> dict[str, int]:
    """Check names, dtypes, ranks and sizes of the inputs, and return the size of every symbolic axis.

    On the host, float32 is accepted for bfloat16 and float16 as well: engines round it. Codes of FP8 are uint8 there.

    Raises:
        QwenImageError: a tensor is missing, not known, or has another dtype or shape. The text has the expectation.
    """
    _check_names(contract.component, "input", contract.inputs, inputs)
    sizes: dict[str, int] = {}
    _check_arrays(contract.component, "input", contract.inputs, inputs, sizes)
    return sizes


def check_outputs(contract: Contract, outputs: Mapping[str, Values], sizes: dict[str, int]) -> None:
    """Check the arrays that a run returned. `sizes` is the result of `check_inputs`.

    Raises:
        QwenImageError: a tensor has another dtype or shape.
    """
    _check_arrays(contract.component, "output", contract.outputs, outputs, sizes)


def _is_model(file: BinaryIO, size: int) -> bool:
    """Return whether the fields of a `ModelProto`, integers and messages, with the graph (7), end where the file does.

    The file may be of any size: its pages are mapped, and few of them are read.
    """
    if size == 0:
        return False
    seen = set()
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for field in protobuf.fields(data):
                if field.kind not in (protobuf.VARINT, protobuf.MESSAGE):
                    return False
                seen.add(field.number)
        except ValueError:
            return False
    return 7 in seen


def _check_names(where: str, side: str, specs: tuple[TensorSpec, ...], found: Mapping[str, object]) -> None:
    expected = {spec.name for spec in specs}
    problems = [f"{side} {name} is missing" for name in sorted(expected - found.keys())]
    problems += [f"{side} {name} is not known" for name in sorted(found.keys() - expected)]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise QwenImageError(f"{where}: {', '.join(problems[:4])}{more}")


def _check_arrays(
    component: str,
    side: str,
    specs: tuple[TensorSpec, ...],
    arrays: Mapping[str, Values],
    sizes: dict[str, int],
) -> None:
    for spec in specs:
        array = arrays[spec.name]
        if not _stands_for(array, spec.dtype) or not _binds(spec.shape, array.shape, sizes):
            bound = [f"{name}={sizes[name]}" for name in spec.symbols() if name in sizes]
            known = f" with {', '.join(bound)}" if bound else ""
            found = f"{dtype_name(array)} {describe_shape(array.shape)}"
            raise QwenImageError(f"{component}: {side} {spec.name} is {found}, expected {spec.describe()}{known}")


def _stands_for(array: Values, dtype: str) -> bool:
    name = dtype_name(array)
    on_host = not isinstance(array, DeviceArray)
    return name == dtype or (on_host and (name, dtype) in _ON_HOST)


def _binds(axes: tuple[str | int, ...], shape: tuple[int, ...], sizes: dict[str, int]) -> bool:
    """Return whether `shape` has these axes, none of size 0. If all fit, add new symbolic axes to `sizes`."""
    if len(axes) != len(shape):
        return False
    bound = dict(sizes)
    for axis, size in zip(axes, shape, strict=True):
        if isinstance(axis, int):
            fits = size == axis
        elif "+" in axis:
            fits = size == sum(bound[part] for part in axis.split("+"))
        else:
            factor, name = split_axis(axis)
            fits = size > 0 and size == factor * bound.setdefault(name, size // factor)
        if not fits:
            return False
    sizes.update(bound)
    return True


def _fits(axes: tuple[str | int, ...], shape: tuple[int | None, ...] | None) -> bool:
    if shape is None:
        return True
    return len(axes) == len(shape) and all(
        found is None or found == axis for axis, found in zip(axes, shape, strict=True)
    )
