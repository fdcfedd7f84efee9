"""The stored tensors that a network's graphs read."""

from __future__ import annotations

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import empty_network
from qwen_image_engine.reference.storage.tensor_file import TensorInfo


def read_tensors(checkpoint: Checkpoint, network: str) -> list[TensorInfo]:
    """The stored tensors that a network's graphs read, in the network's order.

    Raises:
        QwenImageError: the tensors are not those of the network.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in empty_network(checkpoint, network).state_dict().items()}
    return list(checkpoint.stored(network).match(shapes).values())
