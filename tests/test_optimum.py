"""`optimum-cli export qwen-image` is `qwen-image export`: the same bundle, the same document, the same exit codes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.runtime.command import main
from qwen_image_engine.runtime.manifest import read_manifest


def optimum(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "qwen-image", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


def test_exports_the_same_bundle(
    random_checkpoint: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", str(random_checkpoint(name="narrow")), "--without", "vision", "--json"]
    done = optimum(*arguments, str(tmp_path / "theirs"))
    assert done.returncode == 0, done.stderr
    assert main(["export", *arguments, str(tmp_path / "ours")]) == 0
    found, expected = json.loads(done.stdout), json.loads(capfd.readouterr().out)
    assert found.keys() == expected.keys()
    assert found["components"] == expected["components"]
    assert read_manifest(tmp_path / "theirs") == read_manifest(tmp_path / "ours")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-m", "nowhere", "BUNDLE"], 1, "nowhere: does not exist"),
        (["-m", "nowhere", "BUNDLE", "--precision", "int4"], 2, "in precision 'int4'; known:"),
        (["BUNDLE"], 2, "required: -m/--model"),
    ],
    ids=["failed", "impossible", "flags"],
)
def test_fails_as_the_verb_does(arguments: list[str], code: int, message: str) -> None:
    done = optimum(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert message in done.stderr


def test_registering_loads_nothing_heavy() -> None:
    code = (
        "import sys, optimum.commands.register.qwen_image\n"
        "print(*{'torch', 'onnx', 'transformers', 'numpy'} & sys.modules.keys())"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() in ([], ["numpy"])
