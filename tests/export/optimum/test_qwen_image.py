"""`optimum-cli export qwen-image` is `qwen-image export`: the same bundle, the same document, the same exit codes."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.main import main
from tests.support.wheel import build_wheel


@pytest.fixture
def optimum(monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    """`optimum(argument, …)`: the exit code of `optimum-cli export qwen-image` in this process."""

    def run(*arguments: str) -> object:
        from optimum.commands.optimum_cli import main as optimum_main

        monkeypatch.setattr(sys, "argv", ["optimum-cli", "export", "qwen-image", *arguments])
        try:
            optimum_main()
        except SystemExit as exit_:
            return exit_.code
        return 0

    return run


def test_exports_the_same_bundle(
    random_checkpoint: Callable[..., Path],
    tmp_path: Path,
    optimum: Callable[..., object],
    capfd: pytest.CaptureFixture[str],
) -> None:
    arguments = ["-m", str(random_checkpoint(name="narrow")), "--without", "vision", "--json"]
    assert optimum(*arguments, str(tmp_path / "theirs")) == 0
    found = json.loads(capfd.readouterr().out)
    assert main(["export", *arguments, str(tmp_path / "ours")]) == 0
    expected = json.loads(capfd.readouterr().out)
    assert found.keys() == expected.keys()
    assert found["components"] == expected["components"]
    assert read_manifest(tmp_path / "theirs") == read_manifest(tmp_path / "ours")


@pytest.mark.process
def test_fails_as_the_verb_does() -> None:
    """By flags alone: the others take the command in this process, without one more that imports torch."""
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", "export", "qwen-image", "BUNDLE"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout) == (2, "")
    assert "required: -m/--model" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-m", "nowhere", "BUNDLE"], 1, "nowhere: does not exist"),
        (["-m", "nowhere", "BUNDLE", "--precision", "int4"], 2, "in precision 'int4'; known:"),
        (["BUNDLE"], 2, "required: -m/--model"),
    ],
    ids=["failed", "impossible", "flags"],
)
def test_exits_as_the_verb_does(
    arguments: list[str],
    code: int,
    message: str,
    optimum: Callable[..., object],
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert optimum(*arguments) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert message in err


def test_is_not_taken_for_optimum() -> None:
    """Distributions of the editable install; libraries that ask who provides `optimum` warn where there are two."""
    found = packages_distributions()
    assert found["optimum"] == ["optimum"]
    assert found["qwen_image_engine"] == ["qwen-image-engine"]


@pytest.mark.process
def test_the_wheel_names_its_own_package_alone(tmp_path: Path) -> None:
    """Without optimum, too, nothing says that `optimum` is there; the register file is."""
    wheel = build_wheel(tmp_path)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = (name for name in names if name.endswith(".dist-info/top_level.txt"))
        assert archive.read(top_level).decode().split() == ["qwen_image_engine"]
    assert "optimum/commands/register/qwen_image.py" in names
    assert not {"optimum/__init__.py", "optimum/commands/__init__.py"} & set(names)


@pytest.mark.process
def test_registering_loads_nothing_heavy() -> None:
    code = (
        "import sys, optimum.commands.register.qwen_image\n"
        "print(*{'torch', 'onnx', 'transformers', 'numpy'} & sys.modules.keys())"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.split() in ([], ["numpy"])
