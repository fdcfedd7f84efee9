"""The command: its verbs, its documents, its exit codes, and what is left behind when it is interrupted."""

import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.verbs import doctor, run
from qwen_image_engine.runtime.images.parameters import PictureParameters
from qwen_image_engine.runtime.system.machine import package_versions

COMMAND = [sys.executable, "-c", "import sys; from qwen_image_engine.runtime.cli.main import main; sys.exit(main())"]
TELLS_OF_THE_FIRST_STEP = """
import sys
from pathlib import Path
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.cli.verbs import run

told = Path(sys.argv.pop(1))


class Bar(run.ProgressBar):
    def __init__(self, label, *others):
        super().__init__(label, *others)
        if label == "drawing":
            told.touch()


run.ProgressBar = Bar
sys.exit(main())
"""
SMALL = ("-W", "96", "-H", "64", "-s", "3")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, word in ((["--version"], version("qwen-image-engine")), (["run", "--help", "--json"], "--seed")):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 0
        assert word in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("-p", "-red"), {"prompt": "-red"}),
        (("--prompt", "--no people"), {"prompt": "--no people"}),
        (("-p", "-red car", "--seed", "-1,2"), {"prompt": "-red car", "seed": (-1, 2)}),
        (("-p", "a", "-n", "-5", "--seed", "-7"), {"negative_prompt": "-5", "seed": (-7,)}),
        (("-p", "-"), {"prompt": "-"}),
        (("-p=-o", "--negative-prompt=-r"), {"prompt": "-o", "negative_prompt": "-r"}),
        (("-p", "a", "-r", "-in.png", "--save-latents", "-x.npy"), {"save_latents": Path("-x.npy")}),
    ],
)
def test_values_may_begin_with_a_dash(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], expected: dict[str, Any]
) -> None:
    taken: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "execute", lambda options: taken.append(vars(options)) or VerbResult({}, []))
    assert main(["run", "BUNDLE", *words, "-o", "out.png"]) == 0
    assert {name: taken[0][name] for name in expected} == expected
    assert (taken[0]["bundle"], taken[0]["output"]) == (Path("BUNDLE"), Path("out.png"))


@pytest.mark.parametrize("words", [("-p", "-o", "out.png"), ("-o", "out.png", "-p"), ("-p", "--seed=3", "-o", "a.png")])
def test_a_flag_is_no_value(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert main(["run", "BUNDLE", *words]) == 2
    assert "argument -p/--prompt: expected one argument; see qwen-image run --help" in capsys.readouterr().err


def test_doctor(document: Callable[..., Any]) -> None:
    found = document("doctor")
    assert found["packages"]["numpy"] == np.__version__
    assert {item["name"] for item in found["engines"]} == {
        "onnxruntime",
        "onnxruntime-cuda",
        "openvino",
        "tensorrt",
        "tensorrt-rtx",
    }
    assert found["machine"]["cores"] >= 1
    assert found["int8"]
    assert found["disk"]["free_bytes"] > 0


def test_doctor_of_one_engine(document: Callable[..., Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert [item["name"] for item in document("doctor", "--engine", "openvino-bf16")["engines"]] == ["openvino"]
    capsys.readouterr()
    assert main(["doctor", "--engine", "tensorrt"]) == 1
    shown = capsys.readouterr().out
    assert "engine tensorrt " in shown
    assert "engine openvino" not in shown


@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver")
def test_doctor_tells_that_engines_are_built_without_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx_libs")
    assert main(["doctor"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("engine tensorrt-rtx"))
    assert re.search(r"✓ 1\.7\S+ builds engine files, ✗ cannot run them: no CUDA driver: ", line)


def test_doctor_names_what_to_install(
    document: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    missing = next(item for item in document("doctor")["engines"] if item["name"] == "openvino")
    assert missing["version"] is None
    assert "pip install 'qwen-image-engine[openvino]'" in missing["missing"]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert main(["doctor"]) == 1
    assert "pip install 'qwen-image-engine[cpu]'" in capsys.readouterr().out


def test_doctor_names_both_versions_of_a_package_outside_its_range(
    document: Callable[..., Any], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert document("doctor")["unsupported"] == {}
    monkeypatch.setattr(doctor, "package_versions", lambda: package_versions() | {"onnx": "1.18.0"})
    monkeypatch.setattr("openvino.__version__", "3000.1.0-999-releases")
    found = document("doctor")
    assert found["unsupported"].keys() == {"onnx"}
    assert found["unsupported"]["onnx"].startswith("onnx 1.18.0 is installed, older than the supported >=")
    (openvino,) = (item for item in found["engines"] if item["name"] == "openvino")
    assert openvino["version"] == "3000.1.0-999-releases"
    assert openvino["newer"].startswith("openvino 3000.1.0 is installed, newer than the supported >=")
    capsys.readouterr()
    main(["doctor"])
    shown = capsys.readouterr().out
    assert found["unsupported"]["onnx"] in shown
    assert openvino["newer"] in shown


def test_an_older_package_of_export_is_refused_by_both_versions(
    fails: Callable[..., str], document: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    older = package_versions() | {"onnxscript": "0.5.0", "onnxruntime": "1.0", "torch": "3000.0"}
    monkeypatch.setattr("qwen_image_engine.runtime.cli.shared.extras.package_versions", lambda: older)
    words = fails(1, "plan", "-m", tmp_path)
    assert words.startswith("onnxscript 0.5.0 is installed, older than the supported >=0.7.2,")
    assert words.endswith("pip install 'qwen-image-engine[export]'")
    assert document("doctor")["export"] == {"ready": False, "missing": words}


def test_doctor_tells_whether_there_is_a_server(document: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert document("doctor")["serve"] == {"ready": True, "missing": None}
    imported = importlib.import_module("qwen_image_engine.runtime.serve.server")
    monkeypatch.delitem(sys.modules, imported.__name__)  # as module and as attribute, which are both put back
    monkeypatch.delattr(importlib.import_module("qwen_image_engine.runtime.serve"), "server")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    found = document("doctor")["serve"]
    assert not found["ready"]
    assert "uvicorn is not installed" in found["missing"]
    assert "pip install 'qwen-image-engine[serve]'" in found["missing"]


def test_doctor_tells_where_telemetry_is_on_and_what_works_on_each_system(
    document: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = document("doctor")
    assert found["telemetry"] == "ONNX Runtime's and OpenVINO's are off"
    assert found["systems"].keys() == {"Linux", "macOS", "Windows"}
    assert "tensorrt" in found["systems"]["Windows"]["engines"]
    assert found["systems"]["macOS"]["engines"] == ["onnxruntime", "openvino", "openvino-bf16"]
    assert found["systems"]["macOS"]["verbs"] == "all but build"
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", "0")
    assert document("doctor")["telemetry"].startswith("ONNX Runtime's is on (ORT_DISABLE_TELEMETRY=0)")


def test_doctor_tells_of_a_torchvision_for_another_torch(
    document: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> Any:
        if name == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")
        return importlib.import_module(name)

    assert document("doctor")["diffusers"] == {"ready": True, "fault": None}
    monkeypatch.setattr(doctor, "importlib", SimpleNamespace(import_module=load))
    fault = document("doctor")["diffusers"]["fault"]
    assert "torchvision does not fit torch (operator torchvision::nms does not exist); install" in fault
    monkeypatch.setattr(doctor, "importlib", importlib)
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "torchvision is not installed" in document("doctor")["diffusers"]["fault"]
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    assert document("doctor")["diffusers"] == {"ready": False, "fault": None}


def test_plan_adds_up_what_is_written(
    document: Callable[..., Any], random_checkpoint: Callable[..., Path], exported: Callable[..., Path], tmp_path: Path
) -> None:
    plan = document("plan", "-m", random_checkpoint(), tmp_path / "bundle")
    assert plan["stored_bytes"] == sum(network["stored_bytes"] for network in plan["networks"])
    assert plan["free_bytes"] > plan["bundle_bytes"]
    assert list(tmp_path.iterdir()) == []
    weights = sum(file.stat().st_size for file in exported().rglob("*.safetensors"))
    assert plan["bundle_bytes"] <= weights <= plan["bundle_bytes"] + 100_000  # headers, padding
    linked = document("plan", "-m", random_checkpoint(), "--weights", "link")
    assert linked["bundle_bytes"] == 0
    assert 1 < linked["export_seconds"] <= plan["export_seconds"] * 3


def test_plan_tells_what_a_picture_holds(document: Callable[..., Any], random_checkpoint: Callable[..., Path]) -> None:
    small, large = (
        document("plan", "-m", random_checkpoint(), "--size", size)["stages"] for size in ("64x64", "2048x1024")
    )
    assert small.keys() == {"text_encoder", "prefix", "step", "vae_decoder"}
    assert all((small[stage] < large[stage]) == (stage in ("step", "vae_decoder")) for stage in small)
    assert document("plan", "-m", random_checkpoint(), "--target", "tensorrt", "--precision", "bf16")["stages"] == {}
    assert main(["plan", "-m", str(random_checkpoint()), "--size", "100x64"]) == 2


def test_plan_and_export_refuse_too_little_memory(
    random_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("qwen_image_engine.export.estimate.sizes.reachable_memory_bytes", lambda: 1000)
    for verb in ("plan", "export"):
        assert main([verb, "-m", str(random_checkpoint()), str(tmp_path / "bundle")]) == 1
        assert "1000 bytes are free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_plan_refuses_a_full_disk(
    random_checkpoint: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("qwen_image_engine.export.estimate.sizes.shutil.disk_usage", lambda _: usage)
    for verb in ("plan", "export"):
        assert main([verb, "-m", str(random_checkpoint()), str(tmp_path / "bundle")]) == 1
        assert "1000 free" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_inspect_checkpoint(document: Callable[..., Any], random_checkpoint: Callable[..., Path]) -> None:
    found = document("inspect", random_checkpoint(dtype="bfloat16"))
    assert found["kind"] == "checkpoint"
    assert found["licence"] == "random-weights"
    transformer = next(item for item in found["networks"] if item["network"] == "transformer")
    assert transformer["dtypes"] == {"BF16": transformer["parameters"]}
    assert all("keys_that_change_nothing" in item for item in found["networks"])


def test_inspect_bundle(
    document: Callable[..., Any], exported: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    found = document("inspect", exported())
    assert found["kind"] == "bundle"
    assert found["precision"] == "fp32"
    assert set(found["components"]) == {
        "text_encoder",
        "vision",
        "prefix",
        "prefix_image",
        "step",
        "vae_decoder_mid",
        "vae_decoder_up",
        "vae_encoder",
    }
    assert main(["inspect", str(exported())]) == 0
    lines = capsys.readouterr().out
    assert "time_features" in lines
    assert found["files"]["transformer/step.onnx"]["sha256"] in lines


def test_export_reuses_a_bundle(
    document: Callable[..., Any], random_checkpoint: Callable[..., Path], exported: Callable[..., Path], tmp_path: Path
) -> None:
    copy = shutil.copytree(exported(), tmp_path / "bundle")
    found = document("export", "-m", random_checkpoint(), copy)
    assert found["bundle"] == str(copy)
    assert found["weights"] == "copy"
    assert found["bytes"] == sum(
        file.stat().st_size for file in copy.rglob("*") if file.name != "manifest.json" and file.is_file()
    )


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_run(document: Callable[..., Any], exported: Callable[..., Path], tmp_path: Path, engine: str) -> None:
    output, latents = tmp_path / "out.png", tmp_path / "latents.npy"
    prompt = "一个红色的圆形"
    found = document(
        "run", exported(), "-p", prompt, "-o", output, *SMALL, "--seed", 7, "--num-images", 2,
        "--save-latents", latents, "--engine", engine, "--threads", 1,
    )  # fmt: skip
    assert found["files"] == [str(tmp_path / "out-0.png"), str(tmp_path / "out-1.png")]
    assert found["seed"] == 7
    stages = found["timings"]
    names = ["load_s", "references_s", "encode_s", "prefix_s", "first_step_s", "step_s", "decode_s"]
    assert list(stages) == names
    assert [name for name, seconds in stages.items() if not seconds > 0] == ["references_s"]
    assert found["total_s"] > 0
    assert found["requests"] == [{"seed": 7, "files": found["files"], "timings": stages}]
    # Once encoded, and once for each of the two.
    assert (found["references"], found["cache_bytes"]) == ([], 3 * found["prefix_tokens"] * 2 * 4 * 2 * 96)
    assert np.load(latents).shape == (2, 6 * 4, 16)
    for index, file in enumerate(found["files"]):
        with Image.open(file) as picture:
            assert (picture.size, picture.mode) == ((96, 64), "RGBA")
        parameters = PictureParameters.read(file)
        assert (parameters.prompt, parameters.seed, parameters.image, parameters.engine) == (prompt, 7, index, engine)


def test_run_measures_memory_where_asked(
    document: Callable[..., Any], exported: Callable[..., Path], tmp_path: Path
) -> None:
    arguments = ("run", exported(), "-p", "a circle", "-o", tmp_path / "out.png", *SMALL)
    assert "peaks" not in document(*arguments)
    peaks = document(*arguments, "--memory", "sequential", "--measure-memory")["peaks"]
    stages = [f"{kind} {name}" for name in ("text_encoder", "prefix", "step") for kind in ("load", "run")]
    assert list(peaks)[: len(stages)] == stages
    assert all(0 < peak["anonymous_bytes"] < peak["resident_bytes"] for peak in peaks.values())


def test_run_from_given_latents(document: Callable[..., Any], exported: Callable[..., Path], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).standard_normal((1, 6 * 4, 16)).astype(np.float32)
    np.save(tmp_path / "noise.npy", noise)
    pictures = []
    for memory in ("resident", "sequential"):
        output = tmp_path / f"{memory}.png"
        found = document(
            "run", exported(), "-p", "", "-o", output, *SMALL, "--latents", tmp_path / "noise.npy", "--memory", memory,
            "-n", "grey", "--guidance", 2,
        )  # fmt: skip
        assert found["files"] == [str(output)]
        assert found["seed"] is None
        with Image.open(output) as picture:
            pictures.append(np.asarray(picture))
    assert np.array_equal(*pictures)


@pytest.mark.parametrize(("contents", "code"), [(b"no numbers", 1), (None, 1), (np.zeros((1, 5, 16), np.float32), 2)])
def test_latents_that_do_not_fit(
    exported: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], contents: Any, code: int
) -> None:
    path = tmp_path / "noise.npy"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        np.save(path, contents)
    arguments = ["run", str(exported()), "-p", "", "-o", str(tmp_path / "out.png"), *SMALL, "--latents", str(path)]
    assert main(arguments) == code
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()


@pytest.mark.process
def test_a_reader_that_leaves(exported: Callable[..., Path]) -> None:
    line = " ".join([*(f"'{word}'" for word in COMMAND), "inspect", str(exported()), "| true"])
    found = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    assert found.stderr == ""


def interrupted(
    command: list[str], when: Callable[[], bool], number: int = signal.SIGINT
) -> subprocess.CompletedProcess[str]:
    """Run a command, and send it a signal (Ctrl-C) as soon as `when` holds."""
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore the signal, and their children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 300
    while not when() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    out, err = process.communicate(timeout=300)
    return subprocess.CompletedProcess(command, process.returncode, out, err)


@pytest.mark.process
def test_interrupted_export_leaves_no_bundle(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    arguments = ["export", "-m", str(random_checkpoint()), str(folder / "bundle")]
    found = interrupted([*COMMAND, *arguments], lambda: any(folder.glob(".*.partial")), signal.SIGTERM)
    assert (found.returncode, found.stdout, found.stderr) == (143, "", "qwen-image: error: ended by SIGTERM\n")
    assert list(folder.iterdir()) == []


@pytest.mark.process
def test_interrupted_run_leaves_no_picture(exported: Callable[..., Path], tmp_path: Path) -> None:
    folder, told = tmp_path / "folder", tmp_path / "told"
    folder.mkdir()
    command = [sys.executable, "-c", TELLS_OF_THE_FIRST_STEP, str(told), "run", str(exported()), "--json"]
    command += ["-p", "a circle", "-o", str(folder / "out.png"), "-s", "1000", "-W", "1024", "-H", "1024"]
    found = interrupted(command, told.exists)
    assert found.returncode == 130
    assert json.loads(found.stdout) == {"error": "interrupted", "exit_code": 130}
    assert found.stderr == "qwen-image: error: interrupted\n"
    assert list(folder.iterdir()) == []


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a pseudo terminal")
def test_bar_on_a_terminal_only(
    exported: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", str(exported()), "-p", "a circle", "-o", str(tmp_path / "out.png"), *SMALL]
    capfd.readouterr()
    assert main(arguments) == 0
    assert capfd.readouterr().err == ""
    terminal, slave = os.openpty()
    subprocess.run([*COMMAND, *arguments], stdout=subprocess.DEVNULL, stderr=slave, check=True)
    os.close(slave)
    assert "3/3" in os.read(terminal, 100_000).decode()
    os.close(terminal)
