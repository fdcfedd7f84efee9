"""Passes node by node against torch's own: the same graph of operations whose types torch has to promote."""

import functools
from unittest import mock

import onnx_ir as ir
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.onnx._internal.exporter._registration import ONNXRegistry

from qwen_image_engine.export.decompose import decompose
from qwen_image_engine.export.node_by_node import node_by_node
from qwen_image_engine.export.trace import OPSET

OWN = ONNXRegistry.from_torchlib
made_once = functools.cache(OWN)
"""torch's own registry, which takes a second to make."""


class _Promoted(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        half = nn.functional.silu(x) * 2 + torch.arange(x.shape[0])[:, None]  # in float32 and back, whole numbers
        return half, x * y, x.to(torch.int64) / 3, torch.where(y > 0, x, 0.5), nn.functional.softmax(x, -1) ** 2


def _exported() -> ir.Model:
    sizes = {"x": {0: torch.export.Dim("rows")}, "y": {0: torch.export.Dim("rows")}}
    values = (torch.zeros(5, 8, dtype=torch.bfloat16), torch.zeros(5, 8))
    program = torch.onnx.export(
        _Promoted().eval(),
        values,
        dynamo=True,
        optimize=False,
        verbose=False,
        dynamic_shapes=sizes,
        opset_version=OPSET,
    )
    assert program is not None
    model: ir.Model = program.model
    return model


def _operations(model: ir.Model) -> list[object]:
    nodes = [
        (node.op_type, str(node.attributes), [(v.name, str(v.type), str(v.shape)) for v in node.outputs])
        for node in model.graph
    ]
    return [*nodes, [value.name for value in model.graph.outputs]]


def test_types_are_promoted_as_torch_does() -> None:
    with node_by_node():
        found = _operations(_exported())
    with (
        mock.patch.object(ExportedProgram, "run_decompositions", decompose),
        mock.patch.object(ONNXRegistry, "from_torchlib", staticmethod(made_once)),
    ):
        wanted = _operations(_exported())
    assert found == wanted
    assert sum(name == "Cast" for name, *_ in wanted) > 4


def test_the_registry_is_made_once_and_torchs_own_is_back_afterwards() -> None:
    with node_by_node():
        assert ONNXRegistry.from_torchlib(opset_version=OPSET) is ONNXRegistry().from_torchlib(opset_version=OPSET)
        assert (
            ONNXRegistry.from_torchlib(opset_version=OPSET).functions.keys()
            == made_once(opset_version=OPSET).functions.keys()
        )
    assert ONNXRegistry.from_torchlib == OWN
