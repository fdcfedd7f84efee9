"""benchmarks/gpu.sh without a GPU: the whole script at a tiny size, its operations, its budget, its table."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.paths import BENCHMARKS, ROOT, SHAPES

NO_GPU = not torch.cuda.is_available()


ABSENT = ("tokenizers", "PIL", "onnx", "onnx_ir", "onnxscript", "ml_dtypes", "onnxruntime", "diffusers", "transformers")
"""Packages that the script takes where they are, and does without elsewhere."""


def gpu(*arguments: object, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    shell = shutil.which("sh")
    if shell is None:
        pytest.skip("needs sh")
    return subprocess.run(
        [shell, str(BENCHMARKS / "gpu.sh"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHON": python, "OMP_NUM_THREADS": "1"},
    )


@contextmanager
def as_command(folder: Path, *arguments: object) -> Iterator[Callable[[], int]]:
    """The main function of `benchmarks/gpu/run.py` as it is started in a folder with arguments, in this process."""
    from torch._dynamo import config

    from benchmarks.gpu import run as gpu

    with pytest.MonkeyPatch.context() as patch, config.patch(recompile_limit=config.recompile_limit):
        patch.chdir(folder)
        patch.setattr("benchmarks.gpu.run.signal.signal", lambda *arguments: None)
        patch.setattr("benchmarks.common.environment.commit", lambda: "0123456789ab")  # asks git
        patch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)  # put back at the end
        patch.setattr(sys, "argv", ["gpu.py", *map(str, arguments)])
        yield gpu.main
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory: pytest.TempPathFactory, trace_once: None) -> dict[str, Any]:
    """The result of everything at a tiny size."""
    folder = tmp_path_factory.mktemp("gpu")
    output = folder / "gpu.json"
    with as_command(folder, "--device", "cpu", "--tiny", "--output", output) as main:
        assert main() == 0
    document: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return document


@pytest.fixture
def in_process(tmp_path: Path) -> Callable[..., int]:
    """`in_process(*arguments)`: the exit code of `benchmarks/gpu/run.py` in this process, started in `tmp_path`."""

    def run(*arguments: object) -> int:
        with as_command(tmp_path, *arguments) as main:
            return main()

    return run


def test_a_dry_run_writes_no_result(
    in_process: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("benchmarks.gpu.run.run_all", lambda *given: None)
    assert in_process("--device", "cpu", "--tiny") == 0
    assert capsys.readouterr().err.splitlines()[-1] == "out/gpu.json"
    assert (tmp_path / "out" / "gpu.json").is_file()


@pytest.mark.process
def test_what_takes_too_long_is_ended(tmp_path: Path) -> None:
    """With no second to begin anything in, and none of grace."""
    code = (
        "import time; from benchmarks.gpu import run as gpu; "
        "gpu.GRACE_SECONDS = 0.0; gpu.run_all = lambda *given: time.sleep(60); gpu.main()"
    )
    output = tmp_path / "gpu.json"
    arguments = ("--device", "cpu", "--tiny", "--seconds", "0.1", "--output", output)
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "the time is up; what was measured is in the file" in done.stderr
    assert json.loads(output.read_text(encoding="utf-8"))["complete"] is False


@pytest.mark.process
def test_every_part_has_rows(dry_run: dict[str, Any]) -> None:
    assert {"machine", "versions", "commit", "device", "network", "seconds"} <= dry_run.keys()
    assert dry_run["complete"] is True
    assert [row["pixels"] for row in dry_run["ceilings"]] == [64]
    assert dry_run["prefix"]["median_ms"] > 0
    assert dry_run["kernel"]["equal"] is True if "equal" in dry_run["kernel"] else dry_run["kernel"]["missing"]
    timed = {row["way"]: row for row in dry_run["steps"] if "missing" not in row}
    assert {"torch eager", "torch eager, one CUDA graph"} <= timed.keys()
    assert {"torch.compile of the blocks, one CUDA graph", "torch.compile of the step, one CUDA graph"} <= timed.keys()
    for row in timed.values():
        assert row["relative_l2_to_the_first"] < 1e-5  # float32 on a CPU
        assert len(row["rounds_ms"]) == 20
        assert row["median_ms"] <= row["p90_ms"]
    profiles = {row["way"]: row for row in dry_run["profiles"]}
    for way in ("torch eager", "torch.compile of the step, one CUDA graph"):
        row = profiles[way]
        assert row["total_ms"] > 0
        assert {"attention", "products"} <= row["kinds_ms"].keys()
        assert row["attention_kernels"]


@pytest.mark.process
def test_engines_compute_the_same_step(dry_run: dict[str, Any]) -> None:
    """Rows of engines, where one is installed; elsewhere the row says why not."""
    pytest.importorskip("onnxruntime")
    rows = {row["way"]: row for row in dry_run["steps"]}
    assert rows["onnxruntime cpu fp32"]["relative_l2_to_the_first"] < 1e-5
    assert dry_run["profiles"][-1]["way"] == "onnxruntime cpu fp32"
    assert rows["onnxruntime-cuda cuda fp8, synthetic scales"]["missing"]
    for precision in ("bf16", "fp8, synthetic scales", "int8, synthetic scales"):
        assert rows[f"TensorRT 11 {precision}"]["missing"]
    assert rows["onnxruntime cpu fp32"]["timed_by"].startswith("the clock")
    prefixes = {row["way"]: row for row in dry_run["prefixes"]}
    assert list(prefixes)[-3:] == [row["way"] for row in dry_run["steps"][-3:]]
    for way in ("torch.compile of the blocks, one CUDA graph", "onnxruntime cpu fp32"):
        assert prefixes.pop(way)["median_ms"] > 0
    assert all(row["missing"] for row in prefixes.values())
    diffusers = rows["diffusers eager"]
    assert diffusers.get("missing", "ModuleNotFoundError").startswith("ModuleNotFoundError")


def test_diffusers_computes_the_same_step() -> None:
    pytest.importorskip("diffusers")
    from benchmarks.common.released_configs import small_configs
    from benchmarks.gpu.network import eager, make_case, prefix_inputs, random_transformer
    from benchmarks.gpu.peers import Diffusers
    from benchmarks.gpu.work import relative_l2

    network = random_transformer(small_configs()["transformer"], torch.device("cpu"), torch.float32)
    case = make_case(network, 4, prefix_inputs(network, 5))
    with torch.no_grad():
        error, _ = relative_l2([Diffusers(network)(case)()], [eager(network, case)()])
    assert error < 1e-5


@pytest.mark.process
def test_bf16_is_compared_component_by_component(dry_run: dict[str, Any]) -> None:
    found = {(row["checkpoint"], row["component"]): row for row in dry_run["parity"] if "missing" not in row}
    assert {"text_encoder", "vision", "prefix", "step", "vae_encoder"} <= {component for _, component in found}
    for row in found.values():
        assert 1e-4 < row["relative_l2"] < 0.1  # rounded, and not wrong
        assert row["cosine"] > 0.99
    if NO_GPU:
        missing = [row for row in dry_run["parity"] if row["way"] != "torch bf16"]
        wanted = [("onnxruntime-cuda cuda", ("bf16", "fp16", "fp8")), ("tensorrt tensorrt", ("bf16", "fp8", "int8"))]
        assert [row["way"] for row in missing] == [f"{way} {name}" for way, names in wanted for name in names]
        assert all("CUDA" in row["missing"] or "not installed" in row["missing"] for row in missing)


def test_what_is_compared_has_room_in_the_profiles() -> None:
    from benchmarks.gpu.engine_parity import compared_shapes
    from benchmarks.gpu.parity import component_inputs
    from qwen_image_engine.engines.core.contract import contract
    from qwen_image_engine.engines.plans.profile_choice import choose_profile
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
    from qwen_image_engine.reference.components import components, dims
    from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
    from qwen_image_engine.runtime.tools.build.shapes import Template, build_profiles

    checkpoint = Checkpoint.open(SHAPES)
    template = Template.of(load_tokenizer(checkpoint.folder), 2)
    for name in components(checkpoint):
        spec = contract(name, dims(checkpoint))
        shapes = {key: values.shape for key, values in component_inputs(spec).items()}
        choose_profile(spec, build_profiles(spec, compared_shapes(), template, 7), shapes, "qwen-image build")


@pytest.mark.process
@pytest.mark.parametrize("precision", ["bf16", "fp8", "int8"])
def test_what_the_compiler_makes_of_the_graphs(precision: str, trace_once: None, tmp_path: Path) -> None:
    """Exported with synthetic scales, and built by the compiler that needs no GPU.

    The weights are inside; where they are inputs, a plan keeps the same promise and is as much smaller.
    """
    from benchmarks.common.released_configs import small_configs
    from benchmarks.gpu.network import random_transformer
    from benchmarks.gpu.tensorrt import TensorRt, shapes_of
    from benchmarks.gpu.timings import Budget
    from qwen_image_engine.engines.tensorrt.build.job import BuildOptions
    from qwen_image_engine.runtime.bundle.bound_lists import bindable_weights, bound_bytes
    from tests.support.compiler import CAPABILITIES, compiled_for, need_compiler

    need_compiler()
    compiled = compiled_for(CAPABILITIES[precision])
    configs = small_configs()
    network = random_transformer(configs["transformer"], torch.device("cpu"), torch.float32)
    item = TensorRt(network, configs, tmp_path, precision, lambda: shapes_of([4, 8], 8), Budget(100))
    for component in ("step", "prefix"):
        entry, plan, profiles, built = item.build(component, compiled)
        assert plan.stat().st_size == built.bytes
        assert [profile.name for profile in profiles] == (["64x64", "128x128"] if component == "step" else ["any"])
        layers = len(entry.quantised_layers)
        products = layers * (precision == "fp8"), layers * (precision == "int8")
        assert (built.fp8_products, built.int8_products) == products
        assert built.fused_attentions == len(entry.fused_attentions or ()) > 0
        assert bool(layers) == (precision != "bf16")
        assert all(layer.input_scale for layer in entry.quantised_layers.values())
    as_inputs = BuildOptions(weights="bound")
    *_, bound = item.build("prefix", lambda job, watch: compiled(replace(job, options=as_inputs), watch))
    assert (bound.fused_attentions, bound.fp8_products, bound.int8_products) == (built.fused_attentions, *products)
    assert built.bytes > bound.bytes + 0.8 * bound_bytes(bindable_weights(item.folder, entry.model))
    late = TensorRt(network, configs, tmp_path, precision, item.shapes, Budget(-1))
    late.exported = item.exported
    with pytest.raises(TimeoutError, match="the time was up while step was built"):
        late.build("step", lambda job, watch: watch("tactics"))  # type: ignore[arg-type,return-value,func-returns-value]
    item.close()
    assert not item.folder.exists()


def test_without_a_gpu_it_says_so(
    in_process: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if not NO_GPU:
        pytest.skip("there is one")
    assert in_process("--output", tmp_path / "gpu.json") == 1
    assert "torch sees no CUDA device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("tokens", "prefix"), [(16, 7), (36, 20)])
def test_operations_are_those_that_torch_counts(tokens: int, prefix: int) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.common.released_configs import small_configs
    from benchmarks.gpu.network import eager, make_case, prefix_inputs, random_transformer
    from benchmarks.gpu.work import prefix_flop, step_flop

    network = random_transformer(small_configs()["transformer"], torch.device("cpu"), torch.float32)
    states = prefix_inputs(network, prefix)
    case = make_case(network, int(tokens**0.5), states)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        eager(network, case)()
    assert step_flop(network.config, tokens, prefix) == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        network.prefix(*states)
    # Torch counts the mask's upper half, and the rest of the last layer.
    assert prefix_flop(network.config, prefix) < counter.get_total_flops()


def small_steps(budget: float = 50.0) -> Any:
    from benchmarks.common.released_configs import small_configs
    from benchmarks.gpu.network import random_transformer
    from benchmarks.gpu.timings import Budget, Steps

    network = random_transformer(small_configs()["transformer"], torch.device("cpu"), torch.float32)
    return Steps(network, [4], 5, Budget(budget))


def broken(*arguments: Any) -> Any:
    raise RuntimeError("no such\nkernel")


def test_what_would_not_end_in_time_is_a_row() -> None:
    from benchmarks.gpu.network import eager
    from benchmarks.gpu.timings import Once, Way

    steps, once = small_steps(), Once(broken)
    ways = [
        Way("quick", lambda case: eager(steps.network, case), 0),
        Way("slow", lambda case: eager(steps.network, case), 100),
        Way("absent", broken, 0, "it is not installed"),
        Way("broken", lambda case: once(), 0),
        Way("broken", lambda case: once(), 0),
    ]
    with torch.no_grad():
        rows = list(steps.rows(ways))
    assert [row["way"] for row in rows] == ["quick", "slow", "absent", "broken", "broken"]
    assert "missing" not in rows[0]
    assert rows[0]["of_ceiling"] is None  # none was measured
    assert rows[1]["missing"].startswith("left out: it may take 100 s, and ")
    assert rows[2]["missing"] == "it is not installed"
    assert rows[3]["missing"] == "failed: RuntimeError: no such kernel"
    assert rows[4]["missing"].startswith("failed: RuntimeError: as before: ")  # which is not made twice


@pytest.mark.process
@pytest.mark.parametrize(
    ("fails", "also"),
    [
        ("run.random_transformer", "run.prefix_row"),
        ("timings.ceiling", "timings.profile_step"),
        ("timings.make_case", "run.prefix_row"),
    ],
)
def test_what_fails_leaves_the_other_rows(
    fails: str,
    also: str,
    in_process: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(f"benchmarks.gpu.{fails}", broken)
    monkeypatch.setattr(f"benchmarks.gpu.{also}", broken)
    monkeypatch.setattr("benchmarks.gpu.run.torch_rows", lambda *arguments: iter([{"way": "torch bf16"}]))
    monkeypatch.setattr("benchmarks.gpu.run.write_wide_checkpoint", lambda *arguments, **named: None)
    monkeypatch.setattr(
        "benchmarks.gpu.run.Checkpoint", type("Opened", (), {"open": staticmethod(lambda folder: None)})
    )
    monkeypatch.setattr("benchmarks.gpu.run.peers", lambda *arguments: [])
    output = tmp_path / "gpu.json"
    assert in_process("--device", "cpu", "--tiny", "--backend", "eager", "--output", output) == 0
    document = json.loads(output.read_text(encoding="utf-8"))
    assert document["complete"] is True
    assert len(document["parity"]) == 2 + 6
    if fails == "run.random_transformer":
        assert document["network"] == {"missing": "failed: RuntimeError: no such kernel"}
    else:
        assert "missing" in document["ceilings"][0]
        timed = [row for row in document["steps"] if "missing" not in row]
        assert len(timed) == (4 if fails == "timings.ceiling" else 0)
        assert ("missing" in document["prefix"]) == (also == "run.prefix_row")
        failed = all("missing" in row for row in document["profiles"])
        assert failed == (also == "timings.profile_step" or not timed)


def test_the_file_is_whole_after_every_row(tmp_path: Path) -> None:
    from benchmarks.gpu.record import Record

    file = tmp_path / "new" / "gpu.json"
    record = Record(file, {"what": "a test"})
    seen = []

    def rows() -> Iterator[dict[str, Any]]:
        for index in range(2):
            yield {"way": index}
            seen.append(json.loads(file.read_text(encoding="utf-8"))["parity"])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        record.add("parity", rows())
    assert [len(found) for found in seen] == [1, 2]
    assert json.loads(file.read_text(encoding="utf-8"))["complete"] is False
    assert [path.name for path in file.parent.iterdir()] == ["gpu.json"]


def test_an_engine_is_closed_before_the_next_is_made(tmp_path: Path) -> None:
    from benchmarks.gpu.network import eager
    from benchmarks.gpu.record import Record
    from benchmarks.gpu.run import timed_engine
    from benchmarks.gpu.timings import Way

    steps, events = small_steps(), []

    def way(name: str) -> Any:
        def prepare(case: Any) -> Any:
            events.append(f"{name} made")
            return eager(steps.network, case)

        return Way(name, prepare, 0, is_ready=lambda: True, close=lambda: events.append(f"{name} closed"))

    record = Record(tmp_path / "gpu.json", {})
    with torch.no_grad():
        for name in "ab":
            timed_engine(way(name), steps, record)
    made = ["made", "made", "closed"]  # a row, a profile
    assert events == [f"{name} {event}" for name in "ab" for event in made]


def test_an_engines_memory_is_what_came_beside_what_was_held() -> None:
    from benchmarks.gpu.memory import Held

    used = [100]
    held = Held(torch.device("cpu"), lambda device: used[0])
    with held.sampled():
        used[0] = 700
        for _ in range(100):
            if held.most == 600:
                break
            time.sleep(0.02)
        used[0] = 300
    assert held.most == 600
    with held.sampled():
        used[0] = 900
    assert held.most == 800
    assert Held(torch.device("cpu")).most is None


@pytest.mark.process
def test_a_python_without_torch_is_told(tmp_path: Path) -> None:
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    done = gpu("--output", tmp_path / "gpu.json", python=str(bare))
    assert done.returncode == 1
    assert "has not: torch numpy safetensors; install them" in done.stderr
    assert "Traceback" not in done.stderr
    missing = gpu(python=str(tmp_path / "none"))
    assert missing.returncode == 1
    assert "there is no" in missing.stderr


@pytest.mark.process
def test_nothing_but_torch_numpy_and_safetensors_is_needed_to_start(tmp_path: Path) -> None:
    """The whole script, in a Python where importing one of the others is an ImportError."""
    output, python, start = tmp_path / "gpu.json", tmp_path / "python", tmp_path / "start.py"
    start.write_text(
        f"import runpy, sys; sys.modules |= dict.fromkeys({ABSENT}); sys.path[0] = {str(ROOT)!r}; "
        "runpy.run_module('benchmarks.gpu.run', run_name='__main__', alter_sys=True)"
    )
    words = f'{shlex.quote(sys.executable)} {shlex.quote(str(start))} "$@"'
    python.write_text(
        f'#!/bin/sh\nif [ "$1" = -m ]; then shift 2; exec {words}; fi\nexec {shlex.quote(sys.executable)} "$@"\n'
    )
    python.chmod(0o755)
    done = gpu("--device", "cpu", "--tiny", "--tensorrt-only", "--output", output, python=str(python))
    assert done.returncode == 0, done.stderr
    document = json.loads(output.read_text(encoding="utf-8"))
    assert document["complete"] is True
    assert [row["way"] for row in document["steps"] if "missing" not in row] == ["torch eager"]
    assert "prefix" in {row["component"] for row in document["parity"] if "missing" not in row}


def test_the_table_is_made_from_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.documents.gpu import gpu as gpu_tables

    monkeypatch.setattr("benchmarks.documents.tables.RESULTS", tmp_path)
    assert gpu_tables() == "No result of a GPU has been committed yet.\n"
    times = {"first_ms": 9000.0, "median_ms": 100.04, "p90_ms": 101.0, "tflop_per_s": 650.0, "of_ceiling": 0.84}
    missing = {"pixels": 1024, "way": "TensorRT", "missing": "no a|b"}
    found = {
        "device": {"name": "A GPU", "driver": "580"},
        "versions": {"torch": "2.11"},
        "steps": [{"pixels": 1024, "way": "torch eager", "ready_s": 0.26, "peak_bytes": 16e9, **times}, missing],
        "prefix": {"missing": "not reached"},
        "prefixes": [{"prefix": 128, "way": "torch.compile", "peak_bytes": None, **times}],
        "profiles": [{"pixels": 1024, "way": "torch eager", "kinds_ms": {"a": 1.0, "b": 2.26}, "flash": True}, missing],
        "parity": [{"checkpoint": "wide", "component": "step", "way": "x", "relative_l2": 0.012, "cosine": 0.99991}],
    }
    (tmp_path / "gpu.json").write_text(json.dumps(found))
    lines = gpu_tables().splitlines()
    assert lines[0] == "A GPU, driver 580, torch 2.11:"
    assert lines[4] == "| 1024x1024 | torch eager | 0.3 | 9000.0 | 100.0 | 101.0 | 650.0 | 84% | 16.0 GB |"
    assert lines[5] == "| 1024x1024 | TensorRT | no a\\|b |  |  |  |  |  |  |"
    assert "|  |  | not reached |  |  |  |  |  |" in lines
    assert "| 128 | torch.compile | 9000.0 | 100.0 | 101.0 | 650.0 | 84% |  |" in lines
    assert "| 1024x1024 | torch eager | 1.0 | 2.3 | yes |" in lines
    assert "| 1024x1024 | TensorRT | no a\\|b |  |  |" in lines
    assert lines[-1] == "| wide | step | x | 1.20% | 0.99991 |"


@pytest.mark.parametrize(
    ("kernel", "kind"),
    [
        ("void cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_3", "attention"),
        ("void onnxruntime::flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128>>", "attention"),
        ("triton_poi_fused__scaled_dot_product_cudnn_attention_cat_4", "rest: norms, gates, rotations"),
        ("triton_red_fused__fused_rms_norm__to_copy__mul_2", "rest: norms, gates, rotations"),
        ("triton_tem_fused_mm_3", "products"),
        ("nvjet_tst_128x256_64x4_2x1_v_bz_TNT", "products"),
        ("void gemvx::kernel<int, int, __nv_bfloat16>", "products"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
    ],
)
def test_kernels_by_their_names(kernel: str, kind: str) -> None:
    from benchmarks.gpu.profile import kind_of

    assert kind_of(kernel) == kind


def test_p90_of_ten_is_the_ninth() -> None:
    from benchmarks.gpu.work import Times

    assert Times(0.0, tuple(map(float, range(10)))).p90_ms == 8
    assert Times(0.0, tuple(map(float, range(20)))).p90_ms == 17


@pytest.mark.process
def test_what_gpu_sh_links_is_a_distribution(tmp_path: Path) -> None:
    """A bundle's manifest asks for its version."""
    python = tmp_path / "python"
    python.write_text(
        f'''#!/bin/sh
case "$1" in
-c) ;;
*) "{sys.executable}" -S -c "from importlib.metadata import version; print(version('qwen-image-engine'))"; exit 3 ;;
esac
'''
    )
    python.chmod(0o755)
    done = gpu(python=str(python))
    assert done.stdout.strip() == version("qwen-image-engine"), done.stderr
    assert done.returncode == 3
