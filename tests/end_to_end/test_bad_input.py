"""Bad requests, bundles, machines: the API raises the project's own error, the command says one line, exits 1 or 2.

Nothing is half-written: what was in the output's folder before is what is in it afterwards.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.text.prompt import MAX_PROMPT_TOKENS


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


ENTRY = "import sys; from qwen_image_engine.runtime.cli.entry import main; sys.exit(main())"
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
    "a picture beyond the schedule": Request(
        {"width": 64000, "height": 64000}, ("-W", "64000", "-H", "64000"), "ask for a smaller picture"
    ),
    "steps beyond the schedule": Request({"steps": 10**11}, ("-s", str(10**11)), "at most 1000"),
    "seed": Request({"seed": 2**70}, ("--seed", str(2**70)), "seed"),
}


@pytest.fixture
def damaged_bundle(exported: Callable[..., Path], tmp_path: Path) -> Path:
    return shutil.copytree(exported(), tmp_path / "bundle")


@pytest.mark.parametrize("name", list(REQUESTS))
def test_undrawable_request(exported: Callable[..., Path], output: Path, fails: Callable[..., str], name: str) -> None:
    request = REQUESTS[name]
    with QwenImage.load(exported()) as pipeline, pytest.raises(UsageError) as raised:
        pipeline.generate(**{"prompt": "a circle", "width": 64, "height": 64, "steps": 2, **request.arguments})
    assert request.word in str(raised.value)
    usual = ("-p", "a circle", "-W", 64, "-H", 64, "-s", 2, "-o", output / "out.png")
    assert request.word in fails(2, "run", exported(), *usual, *request.flags)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"prompt": None}, "the prompt is NoneType"),
        ({"prompt": b"a circle"}, "the prompt is bytes"),
        ({"width": 64.0}, "whole numbers of pixels"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"seed": None}, "seed is None"),
        ({"latents": [[1.0]]}, "the given latents are list"),
    ],
)
def test_arguments_of_another_type(exported: Callable[..., Path], arguments: dict[str, Any], word: str) -> None:
    with QwenImage.load(exported()) as pipeline, pytest.raises(UsageError, match=word):
        pipeline.generate(**{"prompt": "a circle", "width": 64, "height": 64, "steps": 2, **arguments})


def test_names_that_do_not_say_what_is_written(
    exported: Callable[..., Path], output: Path, fails: Callable[..., str]
) -> None:
    usual = ("-p", "a circle", "-W", 64, "-H", 64, "-s", 2, "-o", output / "out.png")
    assert "ends in .npy" in fails(2, "run", exported(), *usual, "--save-latents", output / "out.png")
    with QwenImage.load(exported()) as pipeline:
        (picture,) = pipeline.generate("a circle", width=64, height=64, steps=2)
    with pytest.raises(UsageError, match=r"ends in \.png"):
        picture.save(output / "out.jpg")


def test_without_a_console(exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with QwenImage.load(exported()) as pipeline:
        (picture,) = pipeline.generate("a circle", width=64, height=64, steps=2)
    assert picture.rgba.shape == (64, 64, 4)


@pytest.mark.process
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full here")
def test_document_that_cannot_be_written(exported: Callable[..., Path]) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, "inspect", exported(), "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode in (1, 120)  # 120: the interpreter's own flush at exit failed as well
    assert "Traceback" not in done.stderr


@pytest.mark.process
def test_packages_that_do_not_load(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('a library is missing')")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    for words in (["plan", "-m", str(tmp_path)], ["doctor"]):
        done = subprocess.run(
            [sys.executable, "-c", ENTRY, *words], capture_output=True, text=True, check=False, env=environment
        )
        assert "do not load (a library is missing)" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("name", "word"),
    [("absent/out.png", "mkdir -p"), ("folder.png", "is a folder"), ("locked/out.png", "cannot write")],
)
def test_unwritable_output(
    exported: Callable[..., Path],
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
    assert word in fails(1, "run", exported(), *usual)
    picture_name = tmp_path / "out.jpg"
    assert "PNG" in fails(2, "run", exported(), *usual, "-o", picture_name)


def test_unwritable_picture(exported: Callable[..., Path], tmp_path: Path) -> None:
    with QwenImage.load(exported()) as pipeline:
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
        truncate(folder / "transformer" / "prefix.onnx")
        return "prefix.onnx"
    if name == "missing graph":
        (folder / "transformer" / "step.onnx").unlink()
        return "missing"
    if name == "missing tokenizer":
        (folder / "processor" / "tokenizer.json").unlink()
        return "tokenizer.json"
    if name == "another schema":
        path = folder / "manifest.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
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
    exported: Callable[..., Path],
    output: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
    extra: str,
) -> None:
    folder = exported()
    monkeypatch.setitem(sys.modules, backend, None)
    word = f"pip install 'qwen-image-engine[{extra}]'"
    with pytest.raises(QwenImageError) as raised:
        QwenImage.load(folder, engine=backend)
    assert word in str(raised.value)
    usual = ("-p", "a circle", "-W", 64, "-H", 64, "-s", 2, "-o", output / "out.png")
    assert word in fails(1, "run", folder, *usual, "--engine", backend)
    assert word in fails(1, "verify", folder, "--engine", backend)


EXPORT, VERIFY = ["export", "-m", "model", "bundle"], ["verify", "bundle"]
CALIBRATE = ["calibrate", "-m", "model", "calibration", "--prompts", "prompts.txt"]


WITHOUT = [("torch", EXPORT), ("onnx_ir", EXPORT), ("torch", VERIFY), ("torch", CALIBRATE), ("safetensors", CALIBRATE)]
ANSWERS = """
import io, json, sys
from contextlib import redirect_stderr, redirect_stdout

sys.modules[sys.argv[1]] = None
from qwen_image_engine.runtime.cli.main import main


def answer(verb):
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        code = main(verb)
    return code, out.getvalue(), err.getvalue()


print(json.dumps([answer(verb) for verb in json.loads(sys.argv[2])]))
"""


@pytest.fixture(scope="module")
def without_package(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[str]], tuple[int, str, str]]:
    """`without_package(package, verb) -> (code, stdout, stderr)`: one process for all verbs of a package."""

    @cache
    def answers(package: str) -> list[tuple[int, str, str]]:
        folder = tmp_path_factory.mktemp("without")
        verbs = json.dumps([verb for name, verb in WITHOUT if name == package])
        words = [sys.executable, "-c", ANSWERS, package, verbs]
        done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert list(folder.iterdir()) == []
        return [(code, out, err) for code, out, err in json.loads(done.stdout)]

    def answer(package: str, verb: list[str]) -> tuple[int, str, str]:
        return answers(package)[[found for name, found in WITHOUT if name == package].index(verb)]

    return answer


@pytest.mark.process
@pytest.mark.parametrize(("package", "verb"), WITHOUT)
def test_export_packages_not_installed(
    without_package: Callable[[str, list[str]], tuple[int, str, str]], package: str, verb: list[str]
) -> None:
    code, out, err = without_package(package, verb)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert f"{package} is not installed" in err
    assert "pip install 'qwen-image-engine[export]'" in err


def test_unknown_flag_and_verb(fails: Callable[..., str]) -> None:
    assert "--colour" in fails(2, "doctor", "--colour")
    assert "draw" in fails(2, "draw")
    assert "CHECKPOINT" in fails(2, "plan") or "-m/--model" in fails(2, "plan")
