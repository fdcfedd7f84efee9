"""Plans that are loaded, and those that are refused."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.bundle.files import describe_file
from tests.support.fake_tensorrt_runtime import Severity
from tests.support.numpy_engines import same_pictures
from tests.support.played_tensorrt import SIZE, MakeBundle, expected, pipeline
from tests.support.toy_graph import toy_graph


def test_a_plan_without_weights_takes_those_of_the_graph(make_bundle: MakeBundle, checkpoint: Path) -> None:
    bundle = make_bundle(stripped=True)
    with pipeline(bundle, checkpoint) as drawn:
        assert same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))
    (bundle.folder / "step.onnx").write_bytes(toy_graph("another"))
    with pytest.raises(QwenImageError, match=r"step\.onnx: 1 weights of the plan .* are not in it \(proj_out"):
        bundle.load_engine("step", "tensorrt")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"version": "11.1.0.1"}, r"built by tensorrt 11\.1\.0\.1, this is 11\.4\.0\.106; .*qwen-image build"),
        (
            {"gpu": "B GPU", "compute_capabilities": ("8.9",)},
            r"on B GPU for compute capability 8\.9, this is A GPU \(9\.0\)",
        ),
        ({"driver": 13020}, r"a driver of CUDA 13\.2, this one serves 13\.0"),
        ({"profiles": ()}, r"it has 2 profiles, its manifest 0"),
    ],
)
def test_a_plan_of_another_machine_is_refused(make_bundle: MakeBundle, values: dict[str, Any], words: str) -> None:
    with pytest.raises(QwenImageError, match=words):
        make_bundle(**values).load_engine("step", "tensorrt")


def test_a_plan_changed_by_one_byte_is_refused(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    plan = bundle.folder / "step.plan"
    data = bytearray(plan.read_bytes())
    data[-1] ^= 1
    plan.write_bytes(data)
    with pytest.raises(QwenImageError, match=r"step\.plan: other contents .*: qwen-image build "):
        bundle.load_engine("step", "tensorrt")
    bundle.load_engine("prefix", "tensorrt").close()


def test_no_runtime_is_told(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the bindings do where TensorRT gives a constructor nothing."""

    def refuse(log: Any) -> None:
        log.log(Severity.ERROR, "the driver is too old")
        raise TypeError("pybind11::init(): factory function returned nullptr")

    bundle = make_bundle()
    monkeypatch.setattr(sys.modules["tensorrt"], "Runtime", refuse)
    with pytest.raises(QwenImageError, match=r"TensorRT makes no runtime: the driver is too old \(pybind11"):
        bundle.load_engine("step", "tensorrt")


def test_what_tensorrt_says_of_a_plan_is_one_line(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    plan = bundle.folder / "step.plan"
    plan.write_bytes(b"no plan")
    bundle = replace(bundle, manifest=replace(bundle.manifest, files={"step.plan": describe_file(plan)}))
    words = r"cannot use .*step\.plan: Serialization assertion failed; build it again with: qwen-image build"
    with pytest.raises(QwenImageError, match=words) as caught:
        bundle.load_engine("step", "tensorrt")
    assert "\n" not in str(caught.value)
    assert "a warning" not in str(caught.value)


def test_a_bundle_without_plans_names_the_command(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    bare = replace(bundle, manifest=replace(bundle.manifest, plans={}))
    with pytest.raises(
        QwenImageError,
        match=r"step: .* holds no tensorrt engine of it; make one with: qwen-image build .* --engine tensorrt$",
    ):
        bare.load_engine("step", "tensorrt")


def test_a_size_outside_every_profile_is_told(make_bundle: MakeBundle, checkpoint: Path) -> None:
    with (
        pipeline(make_bundle(), checkpoint) as drawn,
        pytest.raises(QwenImageError, match=r"step: latents \(1, 1024, 4\) .* the nearest, all, takes .*--profile"),
    ):
        drawn.generate("a", width=512, height=512, steps=2)


@pytest.mark.process
@pytest.mark.skipif(Path("/proc/driver/nvidia").exists(), reason="there is a driver")
@pytest.mark.parametrize("product", ["tensorrt", "tensorrt-rtx"], indirect=True)
def test_no_driver_is_told_and_the_process_lives(make_bundle: MakeBundle, product: str, tmp_path: Path) -> None:
    """In a process of its own: TensorRT crashes where there is no driver."""
    import pickle

    kept = tmp_path / "bundle.pickle"
    kept.write_bytes(pickle.dumps(make_bundle()))
    code = (
        "import pickle, sys; bundle = pickle.load(open(sys.argv[1], 'rb'))\n"
        "try: bundle.load_engine('step', sys.argv[2])\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, kept, product], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("QwenImageError no CUDA driver: libcuda.so.1 cannot be loaded")
