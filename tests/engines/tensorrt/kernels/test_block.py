"""Kernels and traffic of a block, of real builds: against stated numbers, and against arithmetic by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from qwen_image_engine.engines.plans.profile import Range
from qwen_image_engine.engines.tensorrt.kernels.block import Block, ends_of, middle_block
from qwen_image_engine.engines.tensorrt.kernels.kernel import Kernel, kernels_of
from qwen_image_engine.engines.tensorrt.kernels.layer import read_layers
from qwen_image_engine.engines.tensorrt.kernels.ports import Ports
from tests.support.kernel_accounts import (
    BLOCKS,
    PREFIX,
    SIZES,
    BlockNumbers,
    shapes_account,
    step_contract,
    step_profiles,
    wide_account,
)

S = P = 4096
WIDE = {"heads": 32, "width": 4096, "hidden": 12288}


def counted(text: str, ports: Ports, profile: int = 0) -> tuple[tuple[Kernel, ...], Block]:
    names, layers = read_layers(text)
    kernels, known = kernels_of(names, [layer for layer in layers if layer.profile == profile], ports)
    assert known
    block = middle_block(kernels)
    assert block is not None
    return kernels, block


def numbers(block: Block) -> BlockNumbers:
    moved = {kernel: (kernel.read or 0) + (kernel.written or 0) for kernel in block.kernels}
    assert block.least_bytes is not None
    return BlockNumbers(
        len(block.kernels),
        sum(kernel.kind == "product" for kernel in block.kernels),
        sum(count for kernel, count in moved.items() if kernel.kind not in ("product", "attention")),
        sum(moved.values()),
        block.least_bytes,
    )


def wide(precision: str, capability: str = "12.0") -> Block:
    sizes = {"batch": 1, "tokens": S, "prefix": P}
    return counted(wide_account(precision, capability), Ports.at(step_contract(32, 128, 2), sizes, {"batch": 1}))[1]


@pytest.mark.parametrize(("precision", "capability"), [("bf16", "12.0"), ("fp8", "12.0"), ("fp8", "8.9")])
def test_a_block_of_the_released_width(precision: str, capability: str) -> None:
    block = wide(precision, capability)
    assert numbers(block) == BLOCKS[f"wide {precision} {capability}"]
    assert [kernel.kind for kernel in block.kernels].count("attention") == 1
    assert all(kernel.format == precision for kernel in block.kernels if kernel.kind == "product")


def test_the_trial_with_graphs_by_hand_counted_as_much() -> None:
    """In MB, by another counter and from other graphs: beside products and attention, and all of an FP8 block."""
    bf16, fp8, ada = (BLOCKS[f"wide {name}"] for name in ("bf16 12.0", "fp8 12.0", "fp8 8.9"))
    assert [round(block.beside / 1e6) for block in (bf16, fp8)] == [1114, 1147]
    assert round(fp8.moved / 1e6) == 1869
    # All of the trial's bf16 block was 1,919: its block was the last, whose MLP leaves the residual to the norm behind.
    assert round((bf16.moved - 2 * S * 4096) / 1e6) == 1919
    # The trial's weights had one scale; ours have one each. Where products are merged for 8.9, two kernels more apply
    # them: to queries, keys and values, and to gate and proj.
    assert round((ada.moved - 2 * 2 * S * (3 * 4096 + 2 * 12288)) / 1e6) == 1818
    assert round((ada.beside - 2 * 2 * S * (3 * 4096 + 2 * 12288)) / 1e6) == 1147


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_operations_follow_from_the_widths(precision: str) -> None:
    width, hidden = WIDE["width"], WIDE["hidden"]
    flops = Counter(dict.fromkeys(("product", "attention"), 0))
    weights = 0
    for kernel in wide(precision).kernels:
        flops[kernel.kind] += kernel.flops or 0
        weights += kernel.weights if kernel.kind == "product" else 0
    parameters = 4 * width * width + 3 * width * hidden
    assert flops["product"] == 2 * S * parameters
    assert flops["attention"] == 4 * S * (S + P) * width
    assert weights == pytest.approx(parameters * (2 if precision == "bf16" else 1), rel=1e-4)  # and scales


def test_the_least_of_a_bf16_block_is_22_times_the_residual_stream() -> None:
    assert BLOCKS["wide bf16 12.0"].least == 22 * 2 * S * 4096


@pytest.mark.parametrize(("index", "name"), [*enumerate(SIZES)])
def test_every_profile_of_shapes(index: int, name: str) -> None:
    contract = step_contract(3, 64, 7)
    kernels, block = counted(shapes_account("bf16", "8.6"), Ports.of(contract, step_profiles(contract)[index]), index)
    assert (block.blocks, block.alike) == (6, 5)  # the first also converts tables for the others
    tokens = SIZES[name]
    found = numbers(block)
    if name == "1024x1024":
        assert found == BLOCKS["shapes bf16"]
    assert found.least == 2 * 192 * (tokens * 20 + 2 * PREFIX)
    assert sum(kernel.flops or 0 for kernel in kernels if kernel.kind == "attention") == 7 * 4 * tokens * 192 * (
        tokens + PREFIX
    )
    between = [kernel for kernel in kernels if kernel not in ends_of(kernels)]
    assert len(kernels) == 108
    assert len(between) == 6 * len(block.kernels)


@pytest.mark.parametrize(("precision", "capability", "kernels"), [("int8", "8.6", 16), ("fp8", "8.9", 19)])
def test_other_precisions_of_shapes(precision: str, capability: str, kernels: int) -> None:
    contract = step_contract(3, 64, 7)
    ports = Ports.of(contract, step_profiles(contract)[1])
    _, block = counted(shapes_account(precision, capability), ports, 1)
    found = numbers(block)
    assert found.kernels == kernels
    assert found.least < BLOCKS["shapes bf16"].least < found.moved
    formats = {kernel.format for kernel in block.kernels if kernel.kind == "attention"}
    assert formats == {"fp8" if precision == "fp8" else "bf16"}  # exported with --fp8-attention


def test_fewer_than_two_attentions_have_no_block() -> None:
    kernels, _ = counted(wide_account("bf16", "12.0"), Ports.at(step_contract(32, 128, 2), dict.fromkeys(AXES, 64), {}))
    first = next(index for index, kernel in enumerate(kernels) if kernel.heads is not None)
    assert middle_block(kernels[: first + 1]) is None
    assert ends_of(kernels[: first + 1]) == kernels[: first + 1]


AXES = ("batch", "tokens", "prefix")


def test_a_range_of_batches_keeps_cache_and_tables_apart() -> None:
    contract = step_contract(3, 64, 7)
    ports = Ports.of(contract, step_profiles(contract, Range(1, 2, 4))[1])
    assert ports.inputs["latents"].at(ports.values) == 2 * 4096 * 16
    assert ports.inputs["cos"].at(ports.values) == 4096 * 32
    assert ports.moving == {*ports.inputs} - {"time_features"}
