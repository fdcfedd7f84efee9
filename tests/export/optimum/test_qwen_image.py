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
from tests.support.kept_command import kept_command
from tests.support.wheel import build_wheel


def optimum(*arguments: str, kept_graphs: bool = False) -> subprocess.CompletedProcess[str]:
    entry = "optimum.commands.optimum_cli"
    start = kept_command(f"{entry}:main") if kept_graphs else (sys.executable, "-m", entry)
    command = [*start, "export", "qwen-image", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.process
def test_exports_the_same_bundle(
    random_checkpoint: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["-m", str(random_checkpoint(name="narrow")), "--without", "vision", "--json"]
    done = optimum(*arguments, str(tmp_path / "theirs"), kept_graphs=True)
    assert done.returncode == 0, done.stderr
    assert main(["export", *arguments, str(tmp_path / "ours")]) == 0
    found, expected = json.loads(done.stdout), json.loads(capfd.readouterr().out)
    assert found.keys() == expected.keys()
    assert found["components"] == expected["components"]
    assert read_manifest(tmp_path / "theirs") == read_manifest(tmp_path / "ours")


@pytest.mark.process
def test_fails_as_the_verb_does() -> None:
    """By flags alone: whatever else fails in `test_exits_as_the_verb_does`, without a process that imports torch."""
    done = optimum("BUNDLE")
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
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from optimum.commands.optimum_cli import main as optimum_main

    monkeypatch.setattr(sys, "argv", ["optimum-cli", "export", "qwen-image", *arguments])
    with pytest.raises(SystemExit) as exit_:
        optimum_main()
    assert exit_.value.code == code
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
