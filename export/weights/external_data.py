"""External data of a bundle's graphs: hard links to the checkpoint's files, and the place of each weight."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import onnx_ir as ir

from qwen_image_engine.engines.core.dtypes import STORED
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.graph.nodes import cast
from qwen_image_engine.export.weights.weight_file import Place
from qwen_image_engine.reference.storage.stored_network import StoredNetwork
from qwen_image_engine.reference.storage.tensor_file import TensorInfo

# EXDEV: another filesystem. The others: one that knows no hard links (EINVAL on Windows), one that forbids them to this
# user, too many.
_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.EACCES, errno.ENOSYS, errno.EINVAL)


def link_weights(component: StoredNetwork, tensors: Iterable[TensorInfo], folder: Path) -> dict[str, Place]:
    """Hard-link the files that hold `tensors` into `folder`, and return the place of each tensor by stored name.

    No byte is copied. Engines refuse symlinks and paths outside the model's folder, so a hub snapshot's symlinks are
    resolved first.

    Raises:
        QwenImageError: the files cannot be hard-linked into `folder`.
    """
    names = {file.resolve(): file.name for file in component.files}
    places = {}
    for tensor in tensors:
        name = names[tensor.file]
        places[tensor.name] = Place(name, tensor.offset, tensor.nbytes, tensor.dtype)
        if not (folder / name).exists():
            _link(tensor.file, folder / name)
    return places


def place_weights(model: ir.Model, places: Mapping[str, Place]) -> tuple[str, ...]:
    """Point every weight of `model` at its external data, and return the names of the files.

    A weight that is stored in another dtype than the graph computes in gets a Cast.
    """
    graph = model.graph
    first = graph[0]
    files: dict[str, None] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        place = places[name]
        files[place.file] = None
        stored = ir.DataType(STORED[place.dtype].onnx)
        wanted = tensor.dtype
        value.const_value = ir.ExternalTensor(
            place.file, place.offset, place.nbytes, stored, shape=ir.Shape(tensor.shape), name=name
        )
        value.type = ir.TensorType(stored)
        if stored != wanted:
            uses, node = list(value.uses()), cast(value, wanted)
            node.outputs[0].name = f"{name}_{wanted.name.lower()}"
            for use in uses:
                use.node.replace_input_with(use.idx, node.outputs[0])
            graph.insert_before(first, node)
    return tuple(files)


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        raise QwenImageError(
            f"{source}: cannot be hard-linked into {target.parent} ({error.strerror}); "
            "put the bundle on the checkpoint's own disk, or export with --weights copy"
        ) from error
