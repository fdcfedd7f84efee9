"""Calibrations that cannot be carried out: one line in words, and nothing half-written."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwen_image_engine.calibration.observe.trajectories import Trajectories
from tests.support.paths import SHAPES

SMALL = ("--size", "64x64", "--steps", "2")

FLAGS = {
    "size in words": (("--size", "large"), "'large': expected WIDTHxHEIGHT in pixels, such as 1024x768"),
    "size with a sign": (("--size", "64x-64"), "expected WIDTHxHEIGHT"),
    "size": (("--size", "64x100"), "height 96 or 128"),
    "second size": (("--size", "64x64", "100x64"), "width 96 or 128"),
    "a size beyond the schedule": (("--size", "64000x64000"), "ask for a smaller picture"),
    "one step": (("--steps", "1"), "at least 2"),
    "too many steps": (("--steps", "2000"), "at most 1000"),
    "seed": (("--seed", str(2**70)), "seed"),
    "last seed": (("--seed", str(2**64 - 1)), "seed"),
    "guidance": (("--guidance", "0.5"), "guidance is 0.5"),
    "negative prompt alone": (("--guidance", "1", "-n", "grey"), "a negative prompt needs guidance"),
    "negative prompt": (("-n", "a <|image_pad|>"), "reference image"),
    "device": (("--device", "tpu"), "cpu"),
    "dtype": (("--dtype", "fp8"), "fp32"),
    "target alone": (("--target", "cpu"), "--target and --precision are of --sensitivity"),
    "target": (("--sensitivity", "--target", "npu"), "no sensitivity for target 'npu' in precision 'fp8'; known: "),
    "precision of the target": (("--target", "cpu", "--target-error", "0.01"), "--target cpu --precision int8"),
    "precision that quantises nothing": (("--sensitivity", "--precision", "bf16"), "no sensitivity for target"),
    "no error": (("--target-error", "0"), "--target-error 0: expected a relative error above 0"),
    "error below zero": (("--target-error", "-0.01"), "--target-error -0.01: expected a relative error above 0"),
    "error that is no number": (("--target-error", "nan"), "--target-error nan: expected a relative error"),
    "error in words": (("--target-error", "small"), "--target-error"),
}


@pytest.fixture(autouse=True)
def draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trajectories, "__init__", lambda *_: pytest.fail("networks were loaded"))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a circle\n\n  a square  \n", encoding="utf-8")
    return path


@pytest.mark.parametrize("name", list(FLAGS))
def test_usage_errors(prompts: Path, output: Path, fails: Callable[..., str], name: str) -> None:
    flags, word = FLAGS[name]
    # The flag under test stands last: the others' values are those of a request that can be carried out.
    usual = () if name in ("second size", "size", "a size beyond the schedule") else SMALL
    assert word in fails(2, "calibrate", "-m", SHAPES, output / "calibration", "--prompts", prompts, *usual, *flags)


def test_no_cuda(prompts: Path, output: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    usual = ("calibrate", "-m", SHAPES, output / "calibration", "--prompts", prompts, *SMALL, "--device", "cuda")
    for build, word in ((None, "is a build without CUDA"), ("13.0", "finds no CUDA device")):
        monkeypatch.setattr(torch.version, "cuda", build)
        message = fails(2, *usual)
        assert word in message
        assert "--device cpu" in message


@pytest.mark.parametrize(
    ("contents", "code", "word"),
    [
        (b"", 2, "holds no prompts, expected one a line"),
        (b"\n \n\r\n", 2, "holds no prompts"),
        (b"\xef\xbb\xbf\n", 2, "holds no prompts"),  # a byte order mark is no prompt
        ("a circle\nein grüner Kreis\n".encode("latin-1"), 2, "is not UTF-8 (byte 15)"),
        (b"a circle\na <|image_pad|>\n", 2, "prompt 2 of 2: the prompt holds <|image_pad|>"),
        (b"a circle\n" + b"a " * 1200, 2, "prompt 2 of 2: the prompt has"),
        (None, 2, "cannot be read (No such file"),
    ],
)
def test_prompts(
    tmp_path: Path, output: Path, fails: Callable[..., str], contents: bytes | None, code: int, word: str
) -> None:
    path = tmp_path / "prompts.txt"
    if contents is not None:
        path.write_bytes(contents)
    message = fails(code, "calibrate", "-m", SHAPES, output / "calibration", "--prompts", path, *SMALL)
    assert word in message


def test_prompts_are_a_folder(tmp_path: Path, output: Path, fails: Callable[..., str]) -> None:
    usual = ("calibrate", "-m", SHAPES, output / "calibration", "--prompts", tmp_path, *SMALL)
    assert "cannot be read (Is a directory)" in fails(2, *usual)


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("file", "is a file, expected a new folder"),
        ("other", "is a folder with other things in it and no calibration"),
        ("file/calibration", "cannot be written"),
        ("locked/calibration", "cannot be written"),
    ],
)
def test_outputs(prompts: Path, tmp_path: Path, fails: Callable[..., str], name: str, word: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    (tmp_path / "locked").symlink_to("/proc/self")  # where not even root may make a file
    assert word in fails(1, "calibrate", "-m", SHAPES, tmp_path / name, "--prompts", prompts, *SMALL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "locked", "other", "prompts.txt"]
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine.txt"]


def test_checkpoints(prompts: Path, tmp_path: Path, output: Path, fails: Callable[..., str]) -> None:
    usual = (output / "calibration", "--prompts", prompts, *SMALL)
    assert "does not exist" in fails(1, "calibrate", "-m", tmp_path / "absent", *usual)
    damaged = shutil.copytree(SHAPES, tmp_path / "damaged")
    weights = damaged / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    assert "truncated" in fails(1, "calibrate", "-m", damaged, *usual)


def test_what_is_needed(output: Path, fails: Callable[..., str]) -> None:
    assert "--prompts" in fails(2, "calibrate", "-m", SHAPES, output / "calibration")
    assert "-m/--model" in fails(2, "calibrate", output / "calibration", "--prompts", output / "prompts.txt")


def test_finished_and_damaged(prompts: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: Any) -> None:
    monkeypatch.undo()
    from qwen_image_engine.calibration.observe.calibrate import calibrate

    folder = tmp_path / "calibration"
    calibrate(SHAPES, folder, ["a circle", "a square"], steps=2, sizes=[(64, 64)])
    usual = ("calibrate", "-m", SHAPES, folder, "--prompts", prompts, "--size", "64x64")
    assert "was made with steps 2, now 3; ask for the same" in fails(1, *usual, "--steps", 3)
    tensors = folder / "calibration.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:-10])
    message = fails(1, *usual, "--steps", 2)
    assert "truncated" in message
    assert f"remove {folder} and make it again" in message
