"""Decomposition node by node against torch's own, and against what a network computes."""

import pytest
import torch
from torch import Tensor, nn

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.decompose import decompose


class _Views(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first, second = x.chunk(2, dim=-1)
        heads = first.unflatten(-1, (4, -1)).transpose(1, 2)
        pixels = x.reshape(x.shape[0], -1, 2, x.shape[2]).flatten(1, 2)
        return heads.flatten(2), second.square().to(torch.float16), pixels.to(torch.float32), x.flatten()


class _InPlace(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x + 1).add_(1)


def _exported(module: nn.Module) -> torch.export.ExportedProgram:
    sizes = {0: torch.export.Dim("batch"), 1: 2 * torch.export.Dim("pairs")}
    return torch.export.export(module, (torch.zeros(3, 14, 24),), dynamic_shapes=(sizes,))


def test_results_are_those_of_the_network_and_of_torch() -> None:
    x = torch.randn(2, 6, 24, generator=torch.Generator().manual_seed(0))
    ours, theirs = decompose(_exported(_Views())), _exported(_Views()).run_decompositions()
    for found, wanted, there in zip(ours.module()(x), _Views()(x), theirs.module()(x), strict=True):
        assert found.dtype == wanted.dtype
        assert torch.equal(found, wanted)
        assert torch.equal(found, there)


def test_only_operations_that_the_translation_knows_are_left() -> None:
    left = {str(node.target) for node in decompose(_exported(_Views())).graph.nodes if node.op == "call_function"}
    assert not left & {"aten.to.dtype", "aten.chunk.default", "aten.square.default", "aten.unflatten.int"}
    assert "aten.reshape.default" in left


def test_a_change_in_place_is_refused() -> None:
    with pytest.raises(QwenImageError, match="changes a tensor in place"):
        decompose(_exported(_InPlace()))
