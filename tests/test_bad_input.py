"""Every kind of bad input: the API raises the project's own error, the command says one line and exits 1 or 2.

Nothing is half-written: what was in the output's folder before is what is in it afterwards.
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_engine.engines.errors import QwenImageError, UsageError
from qwen_image_engine.export.bundle import export_bundle
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.runtime.command import main
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.prompt import MAX_PROMPT_TOKENS

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"


def edit_json(path: Path, *keys: str, value: Any) -> None:
    """Set a nested key; `...` removes it."""
    document = json.loads(path.read_text())
    inner = document
    for key in keys[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    path.write_text(json.dumps(document))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def truncate(path: Path, lost_bytes: int = 1000) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-lost_bytes])


def key(file: str, *keys: str, value: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / file, *keys, value=value)


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    return lambda folder: edit_tensors(folder / TRANSFORMER, change)


TEXT = ("text_encoder/config.json", "text_config")

# Name -> (damage to a checkpoint's copy, a word of the message).
DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "missing": (shutil.rmtree, "does not exist"),
    "no model_index.json": (lambda folder: (folder / "model_index.json").unlink(), "model_index.json"),
    "incomplete: a folder": (lambda folder: shutil.rmtree(folder / "vae"), "vae"),
    "incomplete: the weights": (lambda folder: (folder / TRANSFORMER).unlink(), "no weights"),
    "incomplete: the tokenizer": (
        lambda folder: (folder / "processor" / "tokenizer.json").unlink(),
        "tokenizer.json",
    ),
    "truncated": (lambda folder: truncate(folder / TRANSFORMER), "truncated"),
    "no JSON": (lambda folder: (folder / "vae" / "config.json").write_text("{"), "config.json"),
    "another architecture": (key("model_index.json", "_class_name", value="FluxPipeline"), "FluxPipeline"),
    "another encoder": (key("text_encoder/config.json", "model_type", value="llama"), "llama"),
    "missing key": (key("transformer/config.json", "num_layers", value=...), "num_layers"),
    "missing key of the schedule": (key("scheduler/scheduler_config.json", "base_shift", value=...), "base_shift"),
    "attention bias": (key(*TEXT, "attention_bias", value=True), "attention_bias"),
    "another activation": (key(*TEXT, "hidden_act", value="gelu"), "hidden_act"),
    "another rope type": (key(*TEXT, "rope_parameters", "rope_type", value="yarn"), "rope_type"),
    "a patch size": (key("transformer/config.json", "patch_size", value=2), "patch_size"),
    "missing tensor": (tensors(lambda found: found.pop("img_in.weight")), "1 missing (img_in.weight)"),
    "unexpected tensor": (
        tensors(lambda found: found.update({"img_in.bias": torch.zeros(4)})),
        "1 unexpected (img_in.bias)",
    ),
    "misshapen tensor": (
        tensors(lambda found: found.update({"img_in.weight": torch.zeros(3, 4)})),
        "img_in.weight is (3, 4)",
    ),
}

TOO_LONG = "a " * (MAX_PROMPT_TOKENS + 1)


@dataclass(frozen=True)
class Request:
    """A request that cannot be drawn: `generate`'s arguments, the command's flags, a word of the message."""

    arguments: dict[str, Any]
    flags: tuple[str, ...]
    word: str


REQUESTS = {
    "width": Request({"width": 100, "height": 64}, ("-W", "100", "-H", "64"), "width 96 or 128"),
    "height": Request({"width": 64, "height": 0}, ("-W", "64", "-H", "0"), "height 32"),
    "one step": Request({"steps": 1}, ("-s", "1"), "at least 2"),
    "no step": Request({"steps": 0}, ("-s", "0"), "at least 2"),
    "prompt too long": Request({"prompt": TOO_LONG}, ("-p", TOO_LONG), f"at most {MAX_PROMPT_TOKENS}"),
    "guidance alone": Request({"guidance": 3.0}, ("--guidance", "3"), "negative prompt"),
    "no pictures": Request({"num_images": 0}, ("--num-images", "0"), ""),
    "too many pictures": Request({"num_images": 5}, ("--num-images", "5"), ""),
    "seed": Request({"seed": 2**70}, ("--seed", str(2**70)), "seed"),
}


@pytest.fixture
def checkpoint(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(random_checkpoint(), tmp_path / "model")


@pytest.fixture
def damaged_bundle(bundle: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(bundle(), tmp_path / "bundle")


@pytest.fixture
def output(tmp_path: Path) -> Iterator[Path]:
    """A folder that must be as empty afterwards as before."""
    folder = tmp_path / "output"
    folder.mkdir()
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`fails(code, *arguments) -> message`: the command's one line, and the same in JSON."""

    def check(code: int, *arguments: object) -> str:
        capsys.readouterr()
        words = [str(word) for word in arguments]
        assert main(words) == code
        plain = capsys.readouterr()
        assert plain.out == ""
        assert plain.err.startswith("qwen-image: error: ")
        assert plain.err.count("\n") == 1
        assert main([*words, "--json"]) == code
        with_json = capsys.readouterr()
        message = plain.err.removeprefix("qwen-image: error: ").rstrip("\n")
        assert json.loads(with_json.out) == {"error": message, "exit_code": code}
        assert with_json.err == plain.err
        return message

    return check


@pytest.mark.parametrize("name", list(DAMAGE))
def test_damaged_checkpoint(checkpoint: Path, output: Path, fails: Callable[..., str], name: str) -> None:
    damage, word = DAMAGE[name]
    damage(checkpoint)
    with pytest.raises(QwenImageError) as raised:
        export_bundle(checkpoint, output / "bundle")
    assert word in str(raised.value)
    with pytest.raises(QwenImageError):
        reference_pipeline(checkpoint)
    assert word in fails(1, "export", "-m", checkpoint, output / "bundle")


def test_unknown_target_and_precision(checkpoint: Path, output: Path, fails: Callable[..., str]) -> None:
    with pytest.raises(UsageError):
        export_bundle(checkpoint, output / "bundle", target="cpu", precision="fp4")
    for verb in ("plan", "export"):
        message = fails(2, verb, "-m", checkpoint, output / "bundle", "--precision", "fp4")
        assert "--target cpu --precision fp32" in message


@pytest.mark.parametrize("name", list(REQUESTS))
def test_undrawable_request(bundle: Callable[..., Path], output: Path, fails: Callable[..., str], name: str) -> None:
    request = REQUESTS[name]
    with QwenImage.load(bundle()) as pipeline, pytest.raises(UsageError) as raised:
        pipeline.generate(**{"prompt": "a circle", "width": 64, "height": 64, "steps": 2, **request.arguments})
    assert request.word in str(raised.value)
    usual = ("-p", "a circle", "-W", 64, "-H", 64, "-s", 2, "-o", output / "out.png")
    assert request.word in fails(2, "run", bundle(), *usual, *request.flags)


@pytest.mark.parametrize(
    ("name", "word"),
    [("absent/out.png", "mkdir -p"), ("folder.png", "is a folder"), ("locked/out.png", "cannot write")],
)
def test_unwritable_output(
    bundle: Callable[..., Path],
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    word: str,
) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "locked").symlink_to("/proc/self")  # where not even root may make a file
    monkeypatch.setattr(QwenImage, "generate", lambda *_, **__: pytest.fail("sampled before the output was tried"))
    usual = ("-p", "a circle", "-W", 64, "-H", 64, "-s", 2, "-o", tmp_path / name)
    assert word in fails(1, "run", bundle(), *usual)
    picture_name = tmp_path / "out.jpg"
    assert "PNG" in fails(2, "run", bundle(), *usual, "-o", picture_name)


def test_unwritable_picture(bundle: Callable[..., Path], tmp_path: Path) -> None:
    with QwenImage.load(bundle()) as pipeline:
        (picture,) = pipeline.generate("a circle", width=64, height=64, steps=2)
    with pytest.raises(QwenImageError):
        picture.save(tmp_path / "absent" / "out.png")


def change_bundle(name: str, folder: Path) -> str:
    """Damage a bundle; returns a word of the message."""
    if name == "changed graph":
        path = folder / "transformer" / "step.onnx"
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        return "step.onnx"
    if name == "truncated graph":
        truncate(folder / "transformer" / "prefix.onnx", 10)
        return "prefix.onnx"
    if name == "missing graph":
        (folder / "transformer" / "step.onnx").unlink()
        return "missing"
    if name == "missing tokenizer":
        (folder / "processor" / "tokenizer.json").unlink()
        return "tokenizer.json"
    if name == "another schema":
        edit_json(folder / "manifest.json", "schema", value=99)
        return "schema version 99"
    if name == "no manifest":
        (folder / "manifest.json").unlink()
        return "no manifest.json"
    raise AssertionError(name)


@pytest.mark.parametrize(
    "name",
    ["changed graph", "truncated graph", "missing graph", "missing tokenizer", "another schema", "no manifest"],
)
def test_damaged_bundle(damaged_bundle: Path, output: Path, fails: Callable[..., str], name: str) -> None:
    word = change_bundle(name, damaged_bundle)
    with pytest.raises(QwenImageError) as raised:
        QwenImage.load(damaged_bundle)
    assert word in str(raised.value)
    usual = ("-p", "a circle", "-W", 64, "-H", 64, "-s", 2, "-o", output / "out.png")
    assert word in fails(1, "run", damaged_bundle, *usual)
    assert word in fails(1, "verify", damaged_bundle, "--output", output / "verify.json")


def test_missing_bundle(output: Path, fails: Callable[..., str]) -> None:
    with pytest.raises(QwenImageError):
        QwenImage.load(output / "bundle")
    usual = ("-p", "a circle", "-W", 64, "-H", 64, "-s", 2, "-o", output / "out.png")
    assert "does not exist" in fails(1, "run", output / "bundle", *usual)
    assert "does not exist" in fails(1, "inspect", output / "bundle")


@pytest.mark.parametrize(("backend", "extra"), [("onnxruntime", "cpu"), ("openvino", "openvino")])
def test_engine_not_installed(
    bundle: Callable[..., Path],
    output: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    extra: str,
) -> None:
    folder = bundle()
    monkeypatch.setitem(sys.modules, backend, None)
    word = f"pip install 'qwen-image-engine[{extra}]'"
    with pytest.raises(QwenImageError) as raised:
        QwenImage.load(folder, engine=backend)
    assert word in str(raised.value)
    usual = ("-p", "a circle", "-W", 64, "-H", 64, "-s", 2, "-o", output / "out.png")
    assert word in fails(1, "run", folder, *usual, "--engine", backend)
    assert word in fails(1, "verify", folder, "--engine", backend)


def test_export_packages_not_installed(
    bundle: Callable[..., Path], output: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = bundle()
    for name in [name for name in sys.modules if name.startswith("qwen_image_engine.export")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    word = "pip install 'qwen-image-engine[export]'"
    assert word in fails(1, "export", "-m", output, output / "bundle")
    monkeypatch.setitem(sys.modules, "qwen_image_engine.reference.pipeline", None)
    monkeypatch.delitem(sys.modules, "qwen_image_engine.reference.pipeline")
    monkeypatch.setitem(sys.modules, "torch", None)
    assert word in fails(1, "verify", folder)


def test_unknown_flag_and_verb(fails: Callable[..., str]) -> None:
    assert "--colour" in fails(2, "doctor", "--colour")
    assert "draw" in fails(2, "draw")
    assert "CHECKPOINT" in fails(2, "plan") or "-m/--model" in fails(2, "plan")
