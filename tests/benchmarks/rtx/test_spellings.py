"""A block of the released width, built by the real compiler, against the numbers that the project promises of it.

A change of the graph that costs a kernel or traffic fails here. The compiler is TensorRT for RTX, without a GPU.
"""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from benchmarks.common import wide_checkpoint
from benchmarks.full_size.export_memory import write_weights
from benchmarks.rtx.spellings import BLOCKS, HEADS, SPELLINGS, build, export
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from tests.support.compiler import need_compiler
from tests.support.plans import kept_plans

MOST = {"bf16": (13, 610e6), "fp8": (13, 945e6), "fp8 with attention": (13, 810e6)}
"""Kernels, products and attention among them, and bytes of the others, at 4,096 tokens behind 4,096."""


def save_with_holes(tensors: Mapping[str, torch.Tensor], file: Path, metadata: object) -> None:
    """Write vectors of 0.01, and matrices that are holes after a first 0.01, which decides their scale.

    The matrices are inputs of the plan, so the compiler sees none of them.
    """
    write_weights(file, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, "BF16", 2, contents=False)
    number = torch.tensor([0.01], dtype=torch.bfloat16).view(torch.uint8).numpy().tobytes()
    place = file.stat().st_size - sum(2 * tensor.numel() for tensor in tensors.values())
    with file.open("r+b") as stored:
        for tensor in tensors.values():
            stored.seek(place)
            stored.write(number * (tensor.numel() if tensor.dim() == 1 else 1))
            place += 2 * tensor.numel()


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """Two blocks of the released width."""
    folder = tmp_path_factory.mktemp("wide") / "checkpoint"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wide_checkpoint, "_weight", lambda name, shape, generator: torch.empty(shape, device="meta"))
        patch.setattr(wide_checkpoint, "save_file", save_with_holes)
        wide_checkpoint.write_wide_checkpoint(folder, HEADS, BLOCKS)
    return Checkpoint.open(folder)


@pytest.mark.process
@pytest.mark.parametrize(
    ("precision", "capability"), [("bf16", "12.0"), ("fp8", "8.9"), ("fp8 with attention", "12.0")]
)
def test_a_block_of_the_released_width(
    wide: Checkpoint, trace_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, capability: str
) -> None:
    need_compiler()
    spelling = next(
        item
        for item in SPELLINGS
        if item.kept != "no"
        and "bound" in item.weights
        and (item.precision, item.fp8_attention) == (precision[:4].strip(), "attention" in precision)
    )
    monkeypatch.setattr("benchmarks.rtx.spellings.run_build", kept_plans())
    row = build(spelling, *export(wide, spelling, tmp_path), "bound", capability)
    kernels, moved = MOST[precision]
    assert "error" not in row
    assert row["sizes_known"]
    assert row["products"] + row["attentions"] + row["others"] <= kernels
    assert row["attentions"] == 1
    assert row["least_bytes"] / 2 < row["bytes_of_others"] <= moved
