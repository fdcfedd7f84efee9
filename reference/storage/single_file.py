"""The transformer as one file, as ComfyUI has it: a prefix before every key, gate and up projection in one tensor.

Source: diffusers 0.42, `convert_qwen_image21_transformer_checkpoint_to_diffusers`. The two projections are halves of
the rows of one tensor, gate first. Half of the rows is a range of the file's bytes, so splitting them copies nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.storage.stored_network import NetworkLayout, StoredNetwork, counted
from qwen_image_engine.reference.storage.tensor_file import TensorInfo, read_header
from qwen_image_engine.reference.storage.weight_kinds import check_no_adapter, check_unquantised, model_of

STACKED = "img_mlp.gate_up"
HALVES = ("img_mlp.gate_layer", "img_mlp.proj")
"""Names of the two linears in `STACKED`: the first and the second half of the rows."""

_IN_BLOCK = re.compile(
    rf"((?:.*\.)?)transformer_blocks\.\d+\.(?:{'|'.join(map(re.escape, (STACKED, *HALVES)))})\.weight"
)


def open_single_file(path: Path, name: str, layout: NetworkLayout) -> StoredNetwork:
    """Open the component `name` in the file at `path`, with the tensor names of the diffusers layout.

    Any text before `transformer_blocks.` is a prefix, which other keys may have too. The two projections may be
    separate tensors: tools that convert between the layouts write such files.

    Raises:
        QwenImageError: the file is missing or damaged, is no safetensors file, holds quantised weights, an adapter or
            another model, or has two keys for the same tensor.
    """
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise QwenImageError(f"{path}: {state}, expected a .safetensors file with the {name} in it")
    stored_tensors = read_header(path)
    check_no_adapter(path, stored_tensors)
    check_unquantised(path, stored_tensors)
    prefixes = _prefixes(stored_tensors)
    if not prefixes:
        model = model_of(stored_tensors)
        found = f"seems to be {model}" if model else f"its {counted('keys', list(stored_tensors))} are unknown"
        raise QwenImageError(f"{path}: {found}, expected the {name} of Qwen-Image 2 ({layout.class_name})")
    tensors: dict[str, TensorInfo] = {}
    keys: dict[str, str] = {}
    for key, stored in stored_tensors.items():
        prefix = next((prefix for prefix in prefixes if key.startswith(prefix)), "")
        for tensor in _unstacked(stored, key.removeprefix(prefix)):
            if tensor.name in tensors:
                raise QwenImageError(f"{path}: keys {keys[tensor.name]!r} and {key!r} are both {tensor.name}")
            tensors[tensor.name], keys[tensor.name] = tensor, key
    return StoredNetwork(name, path, layout, tensors, (path,))


def _prefixes(keys: Iterable[str]) -> list[str]:
    """Return the texts before the blocks' names, longest first; empty if no key is of a block."""
    found = {match[1] for key in keys if (match := _IN_BLOCK.fullmatch(key))}
    return sorted(found, key=len, reverse=True)


def halves(name: str) -> tuple[str, str] | None:
    """Return the names of the two halves of the rows of a tensor or module `name`. None if it is not stacked."""
    stem = name.removesuffix(".weight")
    if not stem.endswith(f".{STACKED}"):
        return None
    block, end = stem.removesuffix(STACKED), name[len(stem) :]
    return block + HALVES[0] + end, block + HALVES[1] + end


def _unstacked(stored: TensorInfo, name: str) -> Iterator[TensorInfo]:
    parts = halves(name)
    if parts is None:
        yield replace(stored, name=name)
        return
    if len(stored.shape) != 2 or stored.shape[0] % 2:
        raise QwenImageError(
            f"{stored.file}: tensor {stored.name!r} is {stored.shape}, expected as many rows of the gate as of the up "
            "projection"
        )
    count = stored.shape[0] // 2
    for index, part in enumerate(parts):
        yield stored.rows(part, index * count, count)
