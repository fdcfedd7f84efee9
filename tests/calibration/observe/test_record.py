"""Calibrations that are not what a recipe may take: each refused in words."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_engine.calibration.observe.partial import PARTIAL
from qwen_image_engine.calibration.observe.record import RECORD, TENSORS, Calibration
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

NAME = "step/transformer_blocks.1.img_mlp.out"


@pytest.fixture
def folder(calibrated: Path, tmp_path: Path) -> Path:
    return shutil.copytree(calibrated, tmp_path / "calibration")


def refused(folder: Path, checkpoint: Path, *words: str) -> None:
    with pytest.raises(QwenImageError) as raised:
        Calibration.open(folder, Checkpoint.open(checkpoint))
    message = str(raised.value)
    assert "\n" not in message
    for word in (str(folder), *words):
        assert word in message, message


def change_record(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / RECORD
    record = json.loads(path.read_text(encoding="utf-8"))
    change(record)
    path.write_text(json.dumps(record), encoding="utf-8")


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Rewrite the tensors, and their hash with them."""
    path = folder / TENSORS
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    data = path.read_bytes()
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change_record(folder, lambda record: record["tensors"].update(entry))


def test_another_checkpoint(folder: Path, shapes: Path, random_checkpoint: Callable[..., Path]) -> None:
    other = random_checkpoint()
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    refused(
        folder,
        other,
        f"the checkpoint checkpoint (config {record['checkpoint']['config_sha256'][:12]}",
        f"expected {other.name} (config {Checkpoint.open(other).config_sha256()[:12]}",
        f"qwen-image calibrate -m {other} NEW_FOLDER --prompts FILE",
    )


def test_other_weights(folder: Path, shapes: Path, tmp_path: Path) -> None:
    other = shutil.copytree(shapes, tmp_path / "other")
    path = other / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    weights = Checkpoint.open(other).weights_sha256()
    refused(folder, other, "was made from the checkpoint", f"weights {weights[:12]}")


def test_the_same_checkpoint_elsewhere(folder: Path, shapes: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(shapes, tmp_path / "moved")
    assert Calibration.open(folder, Checkpoint.open(moved)).settings.checkpoint.name == "checkpoint"


def test_truncated(folder: Path, shapes: Path) -> None:
    path = folder / TENSORS
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    refused(folder, shapes, f"truncated: it holds {size - 100} bytes, expected {size}", "qwen-image calibrate")


def test_changed_tensors(folder: Path, shapes: Path) -> None:
    path = folder / TENSORS
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    refused(folder, shapes, "other contents than the sha256", "qwen-image calibrate")


def test_missing_tensors(folder: Path, shapes: Path) -> None:
    (folder / TENSORS).unlink()
    refused(folder, shapes, "cannot be read (No such file")


def fill(field: str, value: float, index: int | slice = slice(None)) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda tensors: tensors[f"{NAME}/{field}"].__setitem__(index, value)


def drop_layer(tensors: dict[str, torch.Tensor]) -> None:
    for key in [key for key in tensors if key.startswith(("step/transformer_blocks.2.", "step/transformer_blocks.3."))]:
        del tensors[key]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (fill("channel_absmax", float("nan"), 7), "1 of 576 values of channel_absmax are not finite"),
        (fill("channel_mean_square", float("inf")), "576 of 576 values of channel_mean_square are not finite"),
        (fill("percentiles", float("nan"), 3), "1 of 4 values of percentiles are not finite"),
        (fill("absmax_by_step", -1.0, 1), "absmax_by_step holds -1, expected nothing below 0"),
        (fill("channel_absmax", 0.0), "its range is zero"),
        (lambda tensors: tensors.pop(f"{NAME}/percentiles"), "percentiles is missing"),
        (
            lambda tensors: tensors.update({f"{NAME}/channel_absmax": torch.ones(5)}),
            "channel_absmax is torch.float32 (5,), expected torch.float32 (576,)",
        ),
        (
            lambda tensors: tensors.update({f"{NAME}/absmax_by_step": torch.ones(3, dtype=torch.float64)}),
            "absmax_by_step is torch.float64 (3,), expected torch.float32 (3,)",
        ),
    ],
)
def test_ranges(folder: Path, shapes: Path, change: Callable[[dict[str, torch.Tensor]], object], word: str) -> None:
    change_tensors(folder, change)
    refused(folder, shapes, "step, transformer_blocks.1.img_mlp.out: ", word, "qwen-image calibrate")


def test_a_channel_that_is_never_used_is_fine(folder: Path, shapes: Path) -> None:
    change_tensors(folder, fill("channel_absmax", 0.0, 3))
    assert Calibration.open(folder, Checkpoint.open(shapes))


def test_missing_layers(folder: Path, shapes: Path) -> None:
    change_tensors(folder, drop_layer)
    refused(folder, shapes, "step lacks 10 of 35 activations, the first transformer_blocks.2.attn.to_q")


def test_tensors_of_another_kind(folder: Path, shapes: Path) -> None:
    change_tensors(folder, lambda tensors: tensors.update({"weight": torch.ones(2)}))
    refused(folder, shapes, "holds the tensor 'weight', expected COMPONENT/ACTIVATION/FIELD")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda record: record.update(schema=99), "schema version 99, this version reads 3"),
        (lambda record: record.update(format="other"), 'no "format": "qwen-image-calibration"'),
        (lambda record: record.pop("sizes"), "sizes is missing"),
        (lambda record: record.update(sizes=5), "is not the record of a calibration"),
        (lambda record: record.update(dtype=5), "dtype is 5, expected a text"),
        (lambda record: record.pop("tensors"), "tensors is missing"),
        (lambda record: record["tensors"].update(bytes=float("inf")), "tensors.bytes is inf, expected a whole"),
        (lambda record: record["tensors"].update(sha256=["a"]), "tensors.sha256 is"),
        (lambda record: record.update(versions=[]), "is not the record of a calibration"),
        (lambda record: record.update(checkpoint=None), "is not the record of a calibration"),
    ],
)
def test_records(folder: Path, shapes: Path, change: Callable[[dict[str, Any]], object], word: str) -> None:
    change_record(folder, change)
    refused(folder, shapes, RECORD, word, "qwen-image calibrate")


def test_no_record(folder: Path, shapes: Path) -> None:
    (folder / RECORD).write_text("{", encoding="utf-8")
    refused(folder, shapes, "is not the record of a calibration")
    (folder / RECORD).unlink()
    refused(folder, shapes, "is no calibration: no calibration.json")
    (folder / PARTIAL).write_bytes(b"")
    refused(folder, shapes, "holds an unfinished calibration")
    refused(folder / "absent", shapes, "does not exist", "qwen-image calibrate -m CHECKPOINT")
