"""The networks of a checkpoint with their stored weights, and the stored tensors that their graphs read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.networks.text_encoder import TextEncoder
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.networks.vision import Vision
from qwen_image_engine.reference.storage.tensor_file import TensorInfo


def read_tensors(checkpoint: Checkpoint, network: str) -> tuple[TensorInfo, ...]:
    """Return the stored tensors that a network's graphs read, in the network's order.

    The shapes come from the network built on "meta". It is built once for each opened checkpoint.

    Raises:
        QwenImageError: the stored tensors do not match the network.
    """
    if network not in checkpoint.read_by:
        shapes = {name: tuple(tensor.shape) for name, tensor in empty_network(checkpoint, network).state_dict().items()}
        checkpoint.read_by[network] = tuple(checkpoint.stored(network).match(shapes).values())
    return checkpoint.read_by[network]


_BUILT: Mapping[str, Callable[[Checkpoint], nn.Module]] = {
    "transformer": lambda checkpoint: Transformer(checkpoint.transformer),
    "text_encoder": lambda checkpoint: TextEncoder(checkpoint.text_encoder),
    "vision": lambda checkpoint: Vision(checkpoint.vision),
    "vae": lambda checkpoint: Vae(checkpoint.vae),
}


def empty_network(checkpoint: Checkpoint, name: str) -> nn.Module:
    """Build one of `NETWORKS` with parameters on "meta" and derived buffers real.

    Raises:
        QwenImageError: config.json asks for more blocks than are stored, or for sizes that no tensor can have.
    """
    checkpoint.check_depth(name)
    try:
        with torch.device("meta"), _Unfilled():
            network = _BUILT[name](checkpoint)
    except (RuntimeError, TypeError, OverflowError) as error:
        raise QwenImageError(
            f"{checkpoint.stored(name).location / 'config.json'}: no tensors can have the sizes that it asks for"
        ) from error
    return network.eval().requires_grad_(False)


def load_network(checkpoint: Checkpoint, name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Load a network with the checkpoint's weights in `dtype`.

    Weights that are stored in `dtype` are views of the mapped file.

    Raises:
        QwenImageError: the stored tensors do not match the network, or config.json asks for more blocks than are
            stored.
    """
    network = empty_network(checkpoint, name)
    checkpoint.stored(name).load_into(network, dtype)
    return network.requires_grad_(False)


class _Unfilled(TorchFunctionMode):
    """A mode in which parameters get no random values.

    On "meta" there is nothing to fill, and the first `normal_` of a process there imports torch._dynamo: 2 seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func in (nn.init.normal_, nn.init.uniform_, nn.init.kaiming_uniform_):
            return args[0] if args else given["tensor"]
        return func(*args, **given)
