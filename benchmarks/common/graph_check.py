"""A check of graphs with linked weights, because ONNX's checker does not accept hard links."""

from pathlib import Path

import onnx

from qwen_image_engine.engines.core.dtypes import STORED
from qwen_image_engine.reference.storage.tensor_file import read_header


def check_linked_graph(model: Path) -> int:
    """Check a graph and its linked weights, and return the number of linked weights.

    ONNX's checker gets the weights as inputs of the graph. The place of each weight is compared with the header of its
    file.

    Raises:
        onnx.checker.ValidationError: the graph is invalid.
        AssertionError: a weight has another place, shape or dtype than the graph says.
    """
    proto = onnx.load(str(model), load_external_data=False)
    headers = {}
    external = [item for item in proto.graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL]
    for item in external:
        entries = {entry.key: entry.value for entry in item.external_data}
        file = model.parent / entries["location"]
        if file not in headers:
            headers[file] = read_header(file)
        stored = headers[file][item.name]
        said = (int(entries["offset"]), int(entries["length"]), tuple(item.dims), item.data_type)
        found = (stored.offset, stored.nbytes, stored.shape, STORED[stored.dtype].onnx)
        assert said == found, f"{model}: {item.name} is at {said}, in {file} at {found}"
        proto.graph.initializer.remove(item)
        proto.graph.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims))
    onnx.checker.check_model(proto)
    return len(external)
