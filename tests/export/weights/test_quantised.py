"""Quantised weights as a stream: a few rows at a time, and bad values told."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.weights.quantised import (
    Fp8Scale,
    Fp8Weight,
    Int8Scales,
    Int8Weight,
    Rescaled,
    SharedScale,
)
from qwen_image_engine.export.weights.weight_file import WeightFile
from qwen_image_engine.reference.storage import tensor_blocks
from qwen_image_engine.reference.storage.tensor_file import read_header

PROGRAM = """
import os
import sys
from pathlib import Path
import torch
from qwen_image_engine.calibration.quantise.channel_scales import SmoothedChannels
from qwen_image_engine.calibration.quantise.static_input import StaticInput
from qwen_image_engine.calibration.observe.statistics import InputStatistics
from qwen_image_engine.export.weights.quantised import (
    Fp8Scale, Fp8Weight, Int8Scales, Int8Weight, Rescaled, SharedScale
)
from qwen_image_engine.export.weights.weight_file import WeightFile
from qwen_image_engine.reference.storage.tensor_file import read_header

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))

source, target = map(Path, sys.argv[1:3])
small, large = (read_header(source)[name] for name in ("small", "large"))
torch.set_num_threads(1)  # a pool of threads would not come along into the children below
samples = torch.randn(64, 256, 64)
seen = InputStatistics(
    channel_absmax=samples.abs().amax(1).flatten(),
    channel_mean_square=samples.square().mean(1).flatten(),
    percentiles=torch.ones(4),
    absmax_by_step=torch.ones(1),
    gram=samples.mT @ samples / 256,
)
def int8(tensor):
    weight = Int8Weight(Rescaled(tensor), 64, "F32")
    return [weight, Int8Scales(weight)]
def static_int8(tensor):
    item = StaticInput([tensor], True, {"step": seen})
    weight = Int8Weight(Rescaled(tensor, columns=SmoothedChannels(item)), 1, "BF16", item)
    return [weight, Int8Scales(weight)]
def fp8(tensor):
    shared = SharedScale([Rescaled(tensor)], "BF16")
    weight = Fp8Weight(Rescaled(tensor), shared, StaticInput([tensor], False, {"step": seen}))
    return [weight, Fp8Scale(weight)]
def write(tensor, entries):
    WeightFile(f"{tensor.name}.safetensors", entries(tensor)).write(target, lambda count: None)
def grown(entries):
    write(small, entries)
    before = peak()
    write(large, entries)
    return peak() - before
for kind, entries in {"int8": int8, "static int8": static_int8, "fp8": fp8}.items():
    child = os.fork()  # with a peak of its own
    if child == 0:
        print(kind, grown(entries), sep=":", flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit(kind)
"""


@pytest.fixture(scope="module")
def grown_bytes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """By which the peak of memory grows by a tensor eight times as large, by kind of weights."""
    folder = tmp_path_factory.mktemp("memory")
    tensors = {"small": torch.randn(512, 4096).bfloat16(), "large": torch.randn(4096, 4096).bfloat16()}
    save_file(tensors, folder / "source.safetensors")
    command = [sys.executable, "-c", PROGRAM, str(folder / "source.safetensors"), str(folder)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {kind: int(found) for kind, found in (line.split(":") for line in lines)}


@pytest.mark.process
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("kind", ["int8", "static int8", "fp8"])
def test_memory_holds_a_block_whatever_the_tensors_size(grown_bytes: dict[str, int], kind: str) -> None:
    """Static weights are smoothed and rounded with error feedback."""
    # The large tensor is 34 MB as stored and 67 MB in fp32; four blocks have shown what one takes.
    assert grown_bytes[kind] < 24 << 20


def test_blocks_of_any_size_give_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.randn(50, 24)}, tmp_path / "source.safetensors")
    source = read_header(tmp_path / "source.safetensors")["w"]
    hashes = set()
    for block_bytes in (1, 100, 700, 1 << 20):
        monkeypatch.setattr(tensor_blocks, "ROW_BLOCK_BYTES", block_bytes)
        weight = Int8Weight(Rescaled(source), 8, "F32")
        file = WeightFile("w.safetensors", [weight, Int8Scales(weight)])
        hashes.add(file.write(tmp_path, lambda count: None))
        assert (tmp_path / "w.safetensors").stat().st_size == file.nbytes
    assert len(hashes) == 1


def test_scales_before_their_weight_are_a_mistake(tmp_path: Path) -> None:
    save_file({"w": torch.randn(5, 8)}, tmp_path / "source.safetensors")
    weight = Int8Weight(Rescaled(read_header(tmp_path / "source.safetensors")["w"]), 8, "F32")
    with pytest.raises(ValueError, match="w_scale: 0 rows"):
        WeightFile("w.safetensors", [Int8Scales(weight), weight]).write(tmp_path, lambda count: None)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named(
    tmp_path: Path, edited_checkpoint: Callable[..., Path], value: float
) -> None:
    name = "transformer_blocks.1.attn.to_k.weight"
    checkpoint = edited_checkpoint("transformer", lambda tensors: tensors[name].view(-1)[7].fill_(value))
    with pytest.raises(QwenImageError, match=rf"{name}.* not finite"):
        export_bundle(checkpoint, tmp_path / "bundle", precision="int8")
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("largest", [1e-2, 1e-5, 1e-30])
def test_the_scale_of_a_small_weight_keeps_its_precision(tmp_path: Path, largest: float) -> None:
    """In fp16 it would be subnormal below 0.03 and 0 below 1e-5."""
    file = tmp_path / "weights.safetensors"
    values = torch.linspace(-largest, largest, 64).reshape(4, 16)
    save_file({"weight": values}, file)
    rescaled = Rescaled(read_header(file)["weight"])
    weight = Fp8Weight(rescaled, SharedScale([rescaled], "F32"))
    assert weight.scale.value.dtype == torch.float32
    codes = b"".join(bytes(block) for block in weight.blocks())
    found = torch.frombuffer(bytearray(codes), dtype=torch.float8_e4m3fn).float().reshape(4, 16) * weight.scale.value
    torch.testing.assert_close(found, values, rtol=2**-4, atol=largest / 448)  # 3 bits of mantissa


@pytest.mark.parametrize("value", [0.0, 1e-44])
def test_no_scale_is_zero(tmp_path: Path, value: float) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.full((4, 16), value)}, file)
    rescaled = Rescaled(read_header(file)["weight"])
    weight = Fp8Weight(rescaled, SharedScale([rescaled], "F32"))
    assert float(weight.scale.value) == 1.0
    assert set(b"".join(bytes(block) for block in weight.blocks())) == {0}
    (stored,) = (bytes(block) for block in Fp8Scale(weight).blocks())
    assert np.frombuffer(stored, np.float32).tolist() == [1.0]


def test_weights_that_read_the_same_input_share_a_scale(tmp_path: Path) -> None:
    """The largest of both decides, and the smaller keeps its three bits of mantissa."""
    file = tmp_path / "weights.safetensors"
    values = {"one": torch.linspace(-1, 1, 64).reshape(4, 16), "other": torch.linspace(-0.1, 0.1, 48).reshape(3, 16)}
    save_file(values, file)
    header = read_header(file)
    shared = SharedScale([Rescaled(header[name]) for name in values], "F32")
    assert float(shared.value) == pytest.approx(1 / 448, rel=2**-8)
    for name, expected in values.items():
        codes = b"".join(bytes(block) for block in Fp8Weight(Rescaled(header[name]), shared).blocks())
        found = torch.frombuffer(bytearray(codes), dtype=torch.float8_e4m3fn).float().reshape(expected.shape)
        torch.testing.assert_close(found * shared.value, expected, rtol=2**-4, atol=2**-9 / 448)
