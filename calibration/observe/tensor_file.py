"""Tensors of activations in a safetensors file, named COMPONENT/ACTIVATION/FIELD. Files are written atomically."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import whole_file
from qwen_image_engine.reference.storage.tensor_file import read_header

Fields = Mapping[str, Mapping[str, Mapping[str, Tensor]]]
"""Tensors by component, activation and field."""


def pack(fields: Fields, metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of the file. Equal values give equal bytes if `metadata` has one key."""
    tensors = {
        f"{component}/{name}/{field}": tensor.contiguous().cpu()
        for component, activations in fields.items()
        for name, values in activations.items()
        for field, tensor in values.items()
    }
    return save(tensors, dict(metadata))


def read(path: Path, device: str = "cpu") -> tuple[dict[str, dict[str, dict[str, Tensor]]], dict[str, str]]:
    """Read the tensors and the metadata that `pack` stored.

    Raises:
        QwenImageError: the file cannot be read, is damaged, or contains a tensor with another kind of name.
    """
    read_header(path)  # the library would open a pipe, and take tensors of any number
    try:
        with safe_open(path, framework="pt", device=device) as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            metadata = file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise QwenImageError(f"{path}: cannot be read ({error})") from error
    fields: dict[str, dict[str, dict[str, Tensor]]] = {}
    for key, tensor in tensors.items():
        parts = key.split("/")
        if len(parts) != 3:
            raise QwenImageError(f"{path}: holds the tensor {key!r}, expected COMPONENT/ACTIVATION/FIELD")
        component, name, field = parts
        fields.setdefault(component, {}).setdefault(name, {})[field] = tensor
    return fields, metadata


def temporary_name(name: str) -> str:
    """Return the temporary name of the file `name` during writing."""
    return f".{name}.tmp"


def write_whole(path: Path, data: bytes) -> None:
    """Write a file under a temporary name and rename it.

    Raises:
        QwenImageError: the file cannot be written.
    """
    try:
        with whole_file(path, temporary=path.with_name(temporary_name(path.name)), durable=True) as file:
            file.write(data)
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be written ({error.strerror or error})") from error
