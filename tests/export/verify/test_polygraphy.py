"""The files for Polygraphy, run by Polygraphy itself."""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from polygraphy.json import load_json, save_json
from polygraphy.tools import main as polygraphy_main

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.thresholds import Threshold
from qwen_image_engine.export.verify.parity import verify_bundle
from qwen_image_engine.export.verify.polygraphy import _lines, check_polygraphy, snr_db
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.runtime.bundle.manifest import read_manifest

QUICK = (Case("quick", "a red circle", 64, 32),)


def lines_of(folder: Path, component: str) -> tuple[str, str]:
    """The script's own lines for one component: the bundle's place, and the command."""
    lines = (folder / "run.sh").read_text().splitlines()
    (command,) = (line for line in lines if line.startswith("polygraphy run") and f"/{component}.onnx" in line)
    (bundle,) = (line for line in lines if line.startswith("BUNDLE="))
    return bundle, command


def run_here(folder: Path, component: str) -> int:
    """The status of Polygraphy's own program with the command's words, in this process."""
    bundle, command = (shlex.split(line) for line in lines_of(folder, component))
    words = [word.replace("$BUNDLE", bundle[0].removeprefix("BUNDLE=")) for word in command]
    with contextlib.chdir(folder):
        return int(polygraphy_main(words[1:]))


def run_by_shell(folder: Path, component: str) -> int:
    """The exit code of the script's own line."""
    bundle, command = lines_of(folder, component)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    program = f"{bundle}\n{command}"
    return subprocess.run(
        ["sh", "-c", program], cwd=folder, env=os.environ | {"PATH": path}, capture_output=True, check=False
    ).returncode


@pytest.mark.process
def test_polygraphy_agrees_and_disagrees(exported: Callable[..., Path], tmp_path: Path) -> None:
    bundle = shutil.copytree(exported(), tmp_path / "the bundle")
    folder = tmp_path / "polygraphy"
    assert verify_bundle(bundle, cases=QUICK, polygraphy=folder).passed
    script = (folder / "run.sh").read_text()
    assert subprocess.run(["sh", "-n", folder / "run.sh"], check=False).returncode == 0
    assert os.access(folder / "run.sh", os.X_OK)
    # No reference image: neither vision nor a prefix pass of one ran.
    for component in ("text_encoder", "prefix", "step", "vae_decoder_mid", "vae_decoder_up", "vae_encoder"):
        assert script.count(f"--onnxrt --load-inputs {component}-inputs.json") == 1
        assert {path.name for path in folder.glob(f"{component}-*.json")} == {
            f"{component}-inputs.json",
            f"{component}-outputs.json",
        }
    assert "vision" not in script
    assert all("--trt" not in line or line.startswith("#") for line in script.splitlines())
    assert "latents:[1,8," in script

    assert run_by_shell(folder, "step") == 0
    assert run_here(folder, "vae/encoder") == 0
    # The tolerance is the threshold, 1e-5 of the norm: outputs that are 2e-5 off it do not pass.
    outputs = folder / "step-outputs.json"
    results = load_json(str(outputs))
    for result in results["reference"]:
        result["velocity"] = result["velocity"] * 1.00002
    save_json(results, str(outputs))
    assert run_here(folder, "step") != 0


def test_components_with_codes_have_no_line(static_bundle: Callable[..., tuple[Path, Path]]) -> None:
    folder = static_bundle("narrow", "tensorrt-twin", "fp8", fp8_attention=True)[1]
    text = "\n".join(_lines({"prefix": [], "step": []}, {folder: read_manifest(folder)}))
    assert "polygraphy run" not in text
    assert text.count("gives no keys and values in FP8") == 2


def test_thresholds_in_decibels() -> None:
    assert snr_db(Threshold(1e-5, "reason")) == pytest.approx(100)
    assert snr_db(Threshold(0.025, "reason", over="mean")) == pytest.approx(20)


def test_a_folder_that_cannot_be_written(tmp_path: Path, exported: Callable[..., Path]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(QwenImageError, match="not empty; name a new folder"):
        verify_bundle(exported(), cases=QUICK, polygraphy=tmp_path)
    with pytest.raises(QwenImageError, match="not empty; name a new folder"):
        check_polygraphy(tmp_path / "file")
    with pytest.raises(QwenImageError, match="mkdir -p"):
        check_polygraphy(tmp_path / "absent" / "new")


def test_polygraphy_is_not_installed(
    exported: Callable[..., Path], tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy.json", None)
    assert "pip install 'polygraphy" in fails(1, "verify", exported(), "--polygraphy", tmp_path / "new")
