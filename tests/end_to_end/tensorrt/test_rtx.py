"""TensorRT for RTX, played: plans that it takes, its JIT's kernels from process to process, CUDA graphs of its own."""

from __future__ import annotations

import os
import sys
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError, UsageError
from qwen_image_engine.engines.cuda.memory import CudaContext
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.files import describe_file
from tests.support.fake_cuda import FakeDriver
from tests.support.fake_tensorrt_rtx import (
    CudaGraphStrategy,
    DynamicShapesKernelSpecializationStrategy,
    EngineInvalidityDiagnostics,
    EngineValidity,
    HostMemory,
    IRuntimeCache,
    IRuntimeConfig,
)
from tests.support.numpy_engines import same_pictures
from tests.support.played_tensorrt import REFERENCES, SIZE, MakeBundle, expected, pipeline

pytestmark = pytest.mark.parametrize("product", ["tensorrt-rtx"], indirect=True)

RTX = "tensorrt-rtx"
KERNELS = "step.a-gpu-13.0-1.7.1.116.jit"
GUIDED: dict[str, Any] = {"guidance": 2.5, "negative_prompt": "a grey square"}


def played() -> Any:
    return sys.modules["tensorrt_rtx"]


def draw(bundle: Bundle, checkpoint: Path, **options: Any) -> bool:
    """Whether a picture, drawn as in a process of its own, is that of the networks."""
    with pipeline(Bundle(bundle.folder, bundle.manifest), checkpoint, engine=RTX, **options) as drawn:
        return same_pictures(drawn.generate("a", **SIZE), expected(checkpoint))


@pytest.mark.parametrize("streaming", [False, True], ids=["graphs", "weights streamed"])
@pytest.mark.parametrize("arguments", [{}, {**REFERENCES, **GUIDED, "num_images": 2}], ids=["plain", "all"])
def test_pictures_are_those_of_the_networks_and_graphs_are_its_own(
    make_bundle: MakeBundle,
    checkpoint: Path,
    driver: FakeDriver,
    monkeypatch: pytest.MonkeyPatch,
    arguments: dict[str, Any],
    streaming: bool,
) -> None:
    room = driver.total_bytes // 20 + 500  # for 500 of 1,000
    monkeypatch.setattr(CudaContext, "free_bytes", lambda context: room)
    with pipeline(make_bundle(weight_streaming=streaming), checkpoint, engine=RTX) as drawn:
        for seed in (0, 1):
            found = drawn.generate("a", seed=seed, **SIZE, **arguments)
            assert same_pictures(found, expected(checkpoint, seed=seed, **arguments))
    assert driver.calls["cuStreamBeginCapture_v2"] == driver.calls["cuGraphLaunch"] == 0
    strategies = {config.cuda_graph_strategy for config in IRuntimeConfig.made}
    assert (CudaGraphStrategy.WHOLE_GRAPH_CAPTURE in strategies) != streaming
    assert CudaGraphStrategy.DISABLED in strategies  # of what runs once a picture
    del drawn
    assert driver.free_bytes == driver.total_bytes


def test_each_branch_of_guidance_keeps_a_context(
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from qwen_image_engine.engines.tensorrt.rtx import JitContexts

    made: Counter[str] = Counter()
    make = JitContexts.make

    def counted(self: JitContexts) -> Any:
        made[self._component] += 1
        return make(self)

    monkeypatch.setattr(JitContexts, "make", counted)
    with pipeline(make_bundle(), checkpoint, engine=RTX) as drawn:
        for seed in range(2):
            drawn.generate("a", seed=seed, **SIZE, **GUIDED)
            assert made["step"] == 2  # of two lengths
            assert made["vae_decoder_mid"] == 1


def test_kernels_are_kept_beside_the_plans_and_compiled_once(
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    assert draw(bundle, checkpoint)
    assert (bundle.folder / KERNELS).is_file()
    compiled = dict(played().compiled)
    assert set(compiled.values()) == {1}

    def write(path: Path, kernels: bytes) -> None:
        raise AssertionError(path)

    monkeypatch.setattr("qwen_image_engine.engines.tensorrt.rtx.write_kernels", write)
    with warnings.catch_warnings(action="error"):
        assert draw(bundle, checkpoint)
    assert played().compiled == compiled
    assert not list(bundle.folder.glob("*.partial"))


def test_more_kernels_are_added_to_the_file(make_bundle: MakeBundle, checkpoint: Path) -> None:
    bundle = make_bundle()
    assert draw(bundle, checkpoint)
    before = (bundle.folder / KERNELS).read_bytes()
    assert draw(bundle, checkpoint, kernel_specialization="eager")
    assert len((bundle.folder / KERNELS).read_bytes()) > len(before)
    compiled = dict(played().compiled)
    assert draw(bundle, checkpoint)
    assert draw(bundle, checkpoint, kernel_specialization="eager")
    assert played().compiled == compiled


@pytest.mark.parametrize("damage", ["cut", "empty", "another", "larger"])
def test_damaged_kernels_are_begun_anew(
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    bundle = make_bundle()
    assert draw(bundle, checkpoint)
    kept = bundle.folder / KERNELS
    whole = kept.read_bytes()
    kept.write_bytes({"cut": whole[:-1], "empty": b"", "another": b"x" * len(whole), "larger": bytes(10_001)}[damage])
    if damage == "larger":
        monkeypatch.setattr("qwen_image_engine.engines.tensorrt.jit_cache.MOST_BYTES", 10_000)
    played().compiled.clear()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert draw(bundle, checkpoint)
    words = [str(item.message) for item in told]
    assert len(words) == (damage != "empty")
    assert all(KERNELS in text and "its kernels are compiled again" in text for text in words)
    assert played().compiled["step LAZY"] == 1
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("place", ["link", "dangling", "pipe", "folder"])
def test_what_is_no_file_is_not_followed_read_or_waited_for(
    make_bundle: MakeBundle, checkpoint: Path, tmp_path: Path, place: str
) -> None:
    bundle = make_bundle()
    kept, elsewhere = bundle.folder / KERNELS, tmp_path / "elsewhere"
    elsewhere.write_bytes(b"elsewhere")
    if place in ("link", "dangling"):
        kept.symlink_to(elsewhere if place == "link" else tmp_path / "nowhere")
    elif place == "pipe":
        os.mkfifo(kept)
    else:
        kept.mkdir()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        assert draw(bundle, checkpoint)
    assert elsewhere.read_bytes() == b"elsewhere"
    assert not (tmp_path / "nowhere").exists()
    assert kept.is_dir() if place == "folder" else kept.is_file() and not kept.is_symlink()


def test_kernels_that_cannot_be_written_stop_no_picture(
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **options: Any) -> None:
        raise OSError(30, "Read-only file system", str(path))

    bundle = make_bundle()
    monkeypatch.setattr("qwen_image_engine.engines.tensorrt.jit_cache.whole_file", refuse)
    with pytest.warns(RuntimeWarning, match=r"cannot be kept in \S+ \(Read-only file system\); the next process"):
        assert draw(bundle, checkpoint)
    monkeypatch.setattr(IRuntimeCache, "serialize", lambda cache: None)
    with pytest.warns(RuntimeWarning, match="makes no serialized runtime cache"):
        assert draw(bundle, checkpoint)
    assert not (bundle.folder / KERNELS).exists()


def test_more_than_is_read_is_not_written(
    make_bundle: MakeBundle, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = make_bundle()
    monkeypatch.setattr("qwen_image_engine.engines.tensorrt.rtx.MOST_BYTES", 10)
    monkeypatch.setattr(IRuntimeCache, "serialize", lambda cache: HostMemory(bytes(11)))
    assert draw(bundle, checkpoint)
    assert not (bundle.folder / KERNELS).exists()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("VERSION_MISMATCH", r"built by another version than 1\.7\.1\.116; build it again with: qwen-image build "),
        (
            "UNSUPPORTED_CC",
            r"not built for A GPU \(8\.9\); build .* --engine tensorrt-rtx --compute-capability 8\.9$",
        ),
        ("OLD_CUDA_DRIVER", r"a newer driver than this one, which serves CUDA 13\.0; install NVIDIA's newest driver$"),
        ("OLD_CUDA_RUNTIME", r"newer CUDA runtime; install it again with: pip install '.*\[tensorrt-rtx\]'$"),
        ("INSUFFICIENT_GPU_MEMORY", r"the memory of A GPU does not suffice; run with --memory sequential"),
        ("MALFORMED_ENGINE", r"it is no engine file or is damaged; build it again"),
        ("CUDA_ERROR", r"CUDA does not work; see whether nvidia-smi lists the GPU$"),
    ],
)
def test_a_plan_that_is_not_valid_is_refused_in_words(make_bundle: MakeBundle, fault: str, words: str) -> None:
    bundle = make_bundle()
    played().validity = EngineValidity.INVALID, int(EngineInvalidityDiagnostics[fault])
    kind = OutOfDeviceMemory if fault == "INSUFFICIENT_GPU_MEMORY" else QwenImageError
    with pytest.raises(kind, match=rf"^step: TensorRT for RTX cannot use \S+step\.plan: .*{words}"):
        bundle.load_engine("step", RTX)


def test_several_faults_and_none_are_told(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    played().validity = EngineValidity.INVALID, 3
    with pytest.raises(QwenImageError, match=r"another version than .*, and it was not built for A GPU .*; build it"):
        bundle.load_engine("step", RTX)
    played().validity = EngineValidity.INVALID, 0
    with pytest.raises(QwenImageError, match=r"step\.plan: cudaError 35; build it again with"):
        bundle.load_engine("step", RTX)


def test_a_plan_that_may_be_slow_is_taken_with_a_warning(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    played().validity = EngineValidity.SUBOPTIMAL, 0
    with pytest.warns(RuntimeWarning, match=r"step\.plan may be slow on A GPU; .* --compute-capability 8\.9$"):
        bundle.load_engine("step", RTX).close()


def test_a_file_that_is_no_plan_is_told(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    plan = bundle.folder / "step.plan"
    plan.write_bytes(b"no plan" * 20)
    bundle = replace(bundle, manifest=replace(bundle.manifest, files={"step.plan": describe_file(plan)}))
    with pytest.raises(QwenImageError, match=r"step\.plan: it is no engine file or is damaged; build it again with"):
        bundle.load_engine("step", RTX)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"version": "1.6.0.1"},
            r"built by tensorrt-rtx 1\.6\.0\.1, this is 1\.7\.1\.116; .* --compute-capability 8\.9$",
        ),
        (
            {"compute_capabilities": ("8.6", "12.0")},
            r"for compute capability 8\.6, 12\.0, this is A GPU \(8\.9\); .*8.9$",
        ),
        ({"builder": "tensorrt"}, r"holds no tensorrt-rtx engine of it, only one for --engine tensorrt; make one with"),
    ],
)
def test_a_plan_of_another_place_is_refused(make_bundle: MakeBundle, values: dict[str, Any], words: str) -> None:
    with pytest.raises(QwenImageError, match=words):
        make_bundle(**values).load_engine("step", RTX)


def test_the_plan_of_this_card_is_chosen_among_those_of_both_builders(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    (plan,) = bundle.manifest.plans["step"]
    plans = (
        replace(plan, builder="tensorrt", file="a.plan", compute_capabilities=("8.9",)),
        replace(plan, file="b.plan", compute_capabilities=("12.0",)),
        replace(plan, file="c.plan", compute_capabilities=("8.6", "8.9", "12.0")),
        plan,
    )
    bundle = replace(bundle, manifest=replace(bundle.manifest, plans={**bundle.manifest.plans, "step": plans}))
    bundle.load_engine("step", RTX).close()


@pytest.mark.parametrize("chosen", [None, "lazy", "eager"])
def test_specialisation_is_as_asked_for(make_bundle: MakeBundle, chosen: Any) -> None:
    make_bundle().load_engine("step", RTX, kernel_specialization=chosen).close()
    (config,) = IRuntimeConfig.made
    kinds = DynamicShapesKernelSpecializationStrategy
    assert config.dynamic_shapes_kernel_specialization_strategy == (kinds.EAGER if chosen == "eager" else kinds.LAZY)


def test_another_engine_has_none(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    with pytest.raises(UsageError, match=r"'eager': tensorrt does not compile .* or run with --engine tensorrt-rtx$"):
        bundle.load_engine("step", "tensorrt", kernel_specialization="eager")
    with pytest.raises(UsageError, match=r"specialization 'none': expected lazy or eager$"):
        bundle.load_engine("step", RTX, kernel_specialization="none")  # type: ignore[arg-type]


def test_one_process_runs_one_product(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    bundle.load_engine("step", RTX).close()
    with pytest.raises(QwenImageError, match=r"this process uses TensorRT for RTX, and TensorRT cannot be loaded"):
        bundle.load_engine("step", "tensorrt")


def test_a_bundle_of_plans_of_one_builder_names_it(make_bundle: MakeBundle) -> None:
    bundle = make_bundle()
    with pytest.raises(UsageError, match=r"which onnxruntime does not run; run it with --engine tensorrt-rtx, or"):
        bundle.load_engine("step", "onnxruntime")
    bare = replace(bundle, manifest=replace(bundle.manifest, plans={}))
    with pytest.raises(UsageError, match=r"run it with --engine tensorrt or tensorrt-rtx, or"):
        bare.load_engine("step", "onnxruntime")


def test_a_card_that_tensorrt_for_rtx_does_not_know_is_told(make_bundle: MakeBundle, driver: FakeDriver) -> None:
    bundle = make_bundle()
    driver.compute_capability = (9, 0)
    with pytest.raises(QwenImageError, match=r"does not run on A GPU .* only on 7\.5, .*; build and run with"):
        bundle.load_engine("step", RTX)
