"""`bench` whole: processes of their own, the command's document, requests that are refused before anything loads."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.backends import ENGINES
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.tensorrt.package import PRODUCTS
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.contender import Unavailable
from qwen_image_engine.runtime.tools.bench.load import computed_precision, load_contender
from qwen_image_engine.runtime.tools.bench.measure import bench
from qwen_image_engine.runtime.tools.bench.process import ContenderProcess
from qwen_image_engine.runtime.tools.bench.result import Benchmark
from qwen_image_engine.runtime.tools.bench.spec import ContenderSpec

TINY = ("--size", "64x32", "-s", "2", "--threads", "1")


@pytest.fixture
def without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`without(*packages)`: processes that start from now on find none of them."""

    def hide(*packages: str) -> None:
        for package in packages:
            error = f"raise ModuleNotFoundError('hidden', name={package!r})\n"
            (tmp_path / f"{package}.py").write_text(error, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return hide


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """`refused(*arguments) -> message`: `fails` with code 1 and --json alone, for what starts processes each time."""

    def check(*arguments: object) -> str:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 1
        captured = capsys.readouterr()
        message = str(json.loads(captured.out)["error"])
        assert captured.err == f"qwen-image: error: {message}\n"
        return message

    return check


@pytest.mark.process
def test_the_command(
    exported: Callable[..., Path],
    without: Callable[..., None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An engine, a baseline that is installed, three that are not; two kinds of pictures, five rounds."""
    without("diffusers", "torch")
    file = tmp_path / "bench.json"
    arguments = ["bench", str(exported()), "--baseline", "openvino,torch,diffusers,onnxruntime-cuda", "--rounds", "5"]
    arguments += ["--references", "0", "1", "--reference-resolution", "288", *TINY, "--output", str(file)]
    assert main([*arguments, "--json"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document == json.loads(file.read_text(encoding="utf-8"))
    assert json.loads(json.dumps(Benchmark.from_json(document).to_json())) == document

    contenders = {contender["name"]: contender for contender in document["ways"]}
    for name, more in (("torch", ""), ("diffusers", " diffusers transformers torchvision")):
        assert contenders[name]["missing"].endswith(f"install it with: pip install 'qwen-image-engine[export]'{more}")
        assert "is not installed" in contenders[name]["missing"]
    assert contenders["onnxruntime-cuda"]["missing"] is not None
    written = sum(
        path.stat().st_size for path in exported().rglob("*") if path.name != "manifest.json" if path.is_file()
    )
    for name in ("onnxruntime", "openvino"):
        assert contenders[name]["missing"] is None
        assert contenders[name]["disk_bytes"] == sum(document["bundle"]["disk_bytes"].values()) == written
        assert contenders[name]["load_s"] > 0
    plain, edit = document["cases"]
    assert [case["case"]["references"] for case in document["cases"]] == [0, 1]
    common = {"encode", "prefix", "first_step", "prefix_to_first_step", "step", "decode", "rest", "total"}
    for case, stages in ((plain, common), (edit, common | {"vision", "vae_encoder", "prefix_image"})):
        for run in case["runs"]:
            assert len(run["rounds"]) == 5
            for sample in run["rounds"]:
                assert set(sample) == stages
                spent = sum(
                    sum(seconds) for stage, seconds in sample.items() if stage not in ("prefix_to_first_step", "total")
                )
                assert spent == pytest.approx(sample["total"][0])
                assert len(sample["step"]) == 1
        assert {ratio["stage"] for ratio in case["ratios"]} == stages - {"rest"}
        assert {ratio["ratio"]["count"] for ratio in case["ratios"]} == {5}
    if sys.platform == "linux":
        for contender in ("onnxruntime", "openvino"):
            peaks = [
                peak
                for case in document["cases"]
                for run in case["runs"]
                if run["way"] == contender
                for peak in run["peaks"].values()
            ]
            highest = max(peak["resident_bytes"] for peak in [*peaks, contenders[contender]["load_peak"]])
            # Stages of a picture this small end between two readings; the kernel's two counts differ by some pages.
            assert 0.75 < highest / contenders[contender]["peak_bytes"] < 1.01

    assert document["command"].startswith(f"qwen-image bench {exported()} --engine onnxruntime --baseline openvino,")
    assert document["command"].endswith(f" --output {file}")
    assert main(["compare", str(file), str(file)]) == 0


@pytest.mark.process
def test_lines_for_a_person(benchmarked: Path) -> None:
    out = (benchmarked / "lines.txt").read_text(encoding="utf-8")
    assert "p50" in out
    assert "64x32, 2 steps" in out
    assert "2 pairs, a ratio needs 5" in out
    assert "x to" not in out


@pytest.mark.process
def test_an_engine_that_is_not_installed_is_an_error(
    exported: Callable[..., Path], without: Callable[..., None], refused: Callable[..., str]
) -> None:
    without("openvino")
    message = refused("bench", exported(), "--engine", "openvino", *TINY)
    assert message == "openvino: openvino is not installed; install it with: pip install 'qwen-image-engine[openvino]'"


@pytest.mark.parametrize("name", ENGINES)
def test_every_engine_that_is_not_installed_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(module: str) -> None:
        raise ModuleNotFoundError("hidden", name=module)

    monkeypatch.setattr("qwen_image_engine.engines.core.packages.import_module", absent)
    monkeypatch.setattr("qwen_image_engine.engines.tensorrt.package.installed_version", lambda engine: None)
    for product in PRODUCTS.values():  # what an earlier test imported
        monkeypatch.delitem(sys.modules, product.module, raising=False)
    spec = ContenderSpec(name, "baseline", "bundle", None, 1, "resident", 288)
    with pytest.raises(Unavailable, match="is not installed; install it with"):
        load_contender(spec, None)


@pytest.mark.process
def test_cuda_that_is_not_there(
    exported: Callable[..., Path], refused: Callable[..., str], without: Callable[..., None]
) -> None:
    without("openvino")
    """As an engine; `test_the_command` has it among the baselines."""
    message = refused("bench", exported(), "--engine", "onnxruntime-cuda", *TINY)
    assert message.startswith("onnxruntime-cuda: ")


def test_what_an_engine_computes_in() -> None:
    assert computed_precision("openvino", "fp32") == "fp32"
    assert computed_precision("openvino-bf16", "fp32") == "bf16"
    assert computed_precision("openvino-bf16", "int8") == "int8, rest bf16"


def test_another_checkpoint_is_refused(exported: Callable[..., Path], random_checkpoint: Callable[..., Path]) -> None:
    """In this process; the next test has the same error from a process of its own."""
    spec = ContenderSpec("torch", "baseline", str(exported()), str(random_checkpoint("odd")), None, "resident", 288)
    with pytest.raises(QwenImageError, match=r"was not made from .*name the right one with -m"):
        load_contender(spec, None)


@pytest.mark.process
def test_other_weights_are_refused(
    exported: Callable[..., Path],
    random_checkpoint: Callable[..., Path],
    without: Callable[..., None],
    refused: Callable[..., str],
    tmp_path: Path,
) -> None:
    """By the first of the baselines that runs the checkpoint; one that is not there hashes nothing."""
    without("diffusers")
    other = tmp_path / "other"
    shutil.copytree(random_checkpoint(), other)
    weights = next((other / "transformer").glob("*.safetensors"))
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    message = refused("bench", exported(), "--baseline", "diffusers,torch", "-m", other, *TINY)
    assert message.startswith(f"torch: {exported()} was not made from {other}: the checkpoint's weights have sha256")
    assert message.endswith("name the right one with -m")


def test_a_checkpoint_that_nothing_runs_is_refused(exported: Callable[..., Path], fails: Callable[..., str]) -> None:
    message = fails(2, "bench", exported(), "--baseline", "openvino", "-m", "anywhere", *TINY)
    assert "no baseline that is asked for runs a checkpoint; name one of torch, torch-compile, diffusers" in message


@pytest.mark.process
def test_a_process_that_dies_is_named(exported: Callable[..., Path]) -> None:
    spec = ContenderSpec("onnxruntime", "engine", str(exported()), None, 1, "resident", 288)
    with ContenderProcess(spec) as contender:
        assert contender.draw(Case(64, 32, 2), 0, watched=False).sample["total"][0] > 0
        contender._process.kill()
        with pytest.raises(QwenImageError, match="its process ended with code -9; the system kills a process for"):
            contender.draw(Case(64, 32, 2), 1, watched=False)


@pytest.mark.process
def test_an_error_ends_the_process_at_once(exported: Callable[..., Path]) -> None:
    spec = ContenderSpec("onnxruntime", "engine", str(exported()), None, 1, "resident", 288)
    with pytest.raises(KeyboardInterrupt), ContenderProcess(spec) as contender:
        raise KeyboardInterrupt
    assert contender._process.returncode == -9


@pytest.mark.process
def test_a_worker_ends_in_the_middle_of_a_picture_that_nobody_waits_for(exported: Callable[..., Path]) -> None:
    """As where the process that asked was killed."""
    spec = ContenderSpec("onnxruntime", "engine", str(exported()), None, 1, "resident", 288)
    with ContenderProcess(spec) as contender:
        pipe = contender._process.stdin
        assert pipe is not None
        wanted = {"case": asdict(Case(1024, 1024, 500)), "number": 0, "watched": False, "picture": False}
        pipe.write(json.dumps(wanted) + "\n")
        pipe.close()
        assert contender._process.wait(timeout=60) == 1


@pytest.mark.process
def test_what_a_picture_refuses_is_refused_there_too(exported: Callable[..., Path]) -> None:
    spec = ContenderSpec("onnxruntime", "engine", str(exported()), None, 1, "resident", 288)
    with ContenderProcess(spec) as contender, pytest.raises(QwenImageError, match=r"onnxruntime: .*nearest"):
        contender.draw(Case(65, 32, 2), 0, watched=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engines": ["tensorflow"]}, "unknown engine 'tensorflow'; known: onnxruntime"),
        ({"engines": []}, "no engines are given"),
        ({"baselines": ["optimum"]}, "unknown baseline 'optimum'; known: torch, torch-compile, diffusers"),
        ({"baselines": ["torch", "torch"]}, "baselines torch, torch: one stands there twice"),
        ({"baselines": ["onnxruntime"]}, "onnxruntime is engine and baseline"),
        ({"sizes": [(100, 64)]}, "nearest: width 96 or 128"),
        ({"steps": [1]}, "at least 2"),
        ({"batches": [5]}, "5 images asked for"),
        ({"references": [-1]}, "-1 reference images: expected 0 or more"),
        ({"references": [11]}, "11 reference images, at most 10 fit"),
        ({"references": [1], "reference_resolution": 100}, "reference resolution"),
        ({"rounds": 0}, "0 rounds: expected 1 to 9998"),
        ({"rounds": 3333, "steps": [2, 3, 4]}, "3333 rounds of 3 cases: expected at most 3331"),
        ({"sizes": 128}, "sizes 128: expected a list of .width, height. in pixels"),
        ({"sizes": (128, 128)}, "sizes: 128 stands among them, expected .width, height. in pixels"),
        ({"engines": "onnxruntime"}, "engines 'onnxruntime': expected a list of engines' names"),
        ({"steps": ["2"]}, "steps: '2' stands among them, expected whole numbers, or None"),
        ({"rounds": 2.5}, "rounds 2.5: expected a whole number"),
        ({"threads": 0}, "0 threads: expected 1"),
        ({"memory": "frugal"}, "expected resident or sequential"),
    ],
)
def test_requests_that_are_refused(
    exported: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    monkeypatch.setattr("subprocess.Popen", None)  # nothing is started for it
    with pytest.raises(UsageError, match=message):
        bench(exported(), **change)


def test_references_need_their_components(exported: Callable[..., Path]) -> None:
    with pytest.raises(UsageError, match="no vision and no vae_encoder"):
        bench(exported(without=("vision",)), references=[1], reference_resolution=288)


def test_files_are_checked_before_the_work(
    exported: Callable[..., Path], fails: Callable[..., str], tmp_path: Path
) -> None:
    assert "no folder" in fails(1, "bench", exported(), "--output", tmp_path / "gone" / "bench.json")
    assert "does not exist" in fails(1, "bench", tmp_path / "gone")
