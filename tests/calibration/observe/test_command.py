"""The verb: its document, its lines, its bar, and going on after Ctrl-C."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.calibration.observe.partial import PARTIAL
from qwen_image_engine.calibration.observe.record import TENSORS, Calibration
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.cli.verbs.calibrate import read_prompts
from tests.support.paths import SHAPES
from tests.support.small_calibration import FLAGS, PROMPTS, RECIPE

COMMAND = [sys.executable, "-c", "import sys; from qwen_image_engine.runtime.cli.main import main; sys.exit(main())"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeff{}\r\n\r\n  {}".format(*PROMPTS).encode())
    return path


def test_prompts(prompts: Path) -> None:
    assert read_prompts(prompts) == list(PROMPTS)
    prompts.write_bytes("one\u2028 line\ntwice\ntwice\n".encode())
    assert read_prompts(prompts) == ["one\u2028 line", "twice", "twice"]


def test_calibrate(prompts: Path, calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "calibration"
    arguments = ["calibrate", "-m", str(SHAPES), str(output), "--prompts", str(prompts), *FLAGS]
    assert main([*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (output / TENSORS).read_bytes() == (calibrated / TENSORS).read_bytes()
    calibration = Calibration.open(output, Checkpoint.open(SHAPES))
    assert found["sha256"] == calibration.sha256
    assert {name: item["activations"] for name, item in found["components"].items()} == {
        "text_encoder": 12,
        "prefix": 32,
        "step": 35,
    }
    for name, item in found["components"].items():
        statistics = calibration.components[name]
        assert item["absmax"]["value"] == max(float(one.channel_absmax.max()) for one in statistics.values())
        ratio = item["channel_to_mean"]
        largest = statistics[ratio["activation"]].channel_absmax
        assert ratio["value"] == pytest.approx(float(largest.max() / largest.mean()), rel=1e-6)
    assert found["seeds"] == [5, 6]
    assert found["seconds"] > 0
    assert not found["reused"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        f"{output}: 2 pictures of 3 steps at 64x64, 96x32, guidance 3, fp32 on cpu, there already"
    )
    assert [line.split()[0] for line in lines[1:]] == ["component", "text_encoder", "prefix", "step"]


def test_sensitivity(analysed_in_int8: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads((analysed_in_int8 / "document.json").read_text(encoding="utf-8"))["sensitivity"]
    output = shutil.copytree(analysed_in_int8 / "calibration", tmp_path / "calibration")
    prompts = analysed_in_int8 / "prompts.txt"
    assert found == json.loads((output / "sensitivity-tensorrt-int8.json").read_text(encoding="utf-8"))
    high, measured = found["search"]["high"], found["search"]["error"]
    assert measured <= 0.03
    assert len(json.loads((output / "recipe-tensorrt-int8.json").read_text(encoding="utf-8"))["rules"]) == len(high) + 1
    for path in output.glob("*-tensorrt-int8.*"):
        if not path.name.endswith(".partial.json"):  # the second run goes on from it
            path.unlink()
    arguments = ["calibrate", "-m", str(SHAPES), str(output), "--prompts", str(prompts), *FLAGS, *RECIPE]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "sensitivity of 49 linears in int8 for tensorrt, 2 pictures: " in text
    assert f"{len(high)} of 49 linears stay high for at most 3%: {100 * measured:.3g}% measured" in text
    worst = max(found["linears"], key=lambda name: found["linears"][name]["rms"])
    assert f" 1  {worst} " in text
    assert [line for line in text.splitlines() if line.startswith("wrote ")] == [
        f"wrote {output / name}"
        for name in ("sensitivity-tensorrt-int8.json", "sensitivity-tensorrt-int8.svg", "recipe-tensorrt-int8.json")
    ]


def test_interrupted_and_gone_on_with(
    prompts: Path, begin: Callable[..., None], calibrated: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "calibration"
    begin(output, 4)
    assert [path.name for path in output.iterdir()] == [PARTIAL]
    assert main(["calibrate", "-m", str(SHAPES), str(output), "--prompts", str(prompts), *FLAGS]) == 0
    assert (output / TENSORS).read_bytes() == (calibrated / TENSORS).read_bytes()


@pytest.mark.process
def test_ctrl_c_keeps_whole_trajectories(prompts: Path, tmp_path: Path) -> None:
    prompts.write_text("a circle\n" * 500, encoding="utf-8")
    output = tmp_path / "calibration"
    process = subprocess.Popen(
        [*COMMAND, "calibrate", "-m", str(SHAPES), str(output), "--prompts", str(prompts), *FLAGS],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore the signal, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    while not (output / PARTIAL).exists() and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, out, err) == (130, "", "qwen-image: error: interrupted\n")
    assert [path.name for path in output.iterdir()] == [PARTIAL]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")
def test_bar_on_a_terminal_only(prompts: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "calibration"
    arguments = ["calibrate", "-m", str(SHAPES), str(output), "--prompts", str(prompts), *FLAGS]
    assert main(arguments) == 0
    assert capfd.readouterr().err == ""
    shutil.rmtree(output)
    terminal, slave = os.openpty()
    with pytest.MonkeyPatch.context() as patch, os.fdopen(slave, "w", encoding="utf-8") as stream:
        patch.setattr(sys, "stderr", stream)
        assert main(arguments) == 0
    shown = os.read(terminal, 100_000).decode()
    assert "hashing the checkpoint" in shown
    assert "calibrating" in shown
    assert "6/6" in shown
    os.close(terminal)
