"""Building a bundle with a builder that writes a few bytes: what is built, kept, recorded, refused and left behind."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.plans.entry import LAYERS
from qwen_image_engine.engines.plans.memory import port_bytes
from qwen_image_engine.engines.plans.profile import Range
from qwen_image_engine.engines.tensorrt.build.job import (
    BUILDER_REVISION,
    BuildJob,
    BuildOptions,
    BuildResult,
    ExpectedFusions,
)
from qwen_image_engine.engines.tensorrt.build.launch import Watch
from qwen_image_engine.runtime.bundle.files import check_files, describe_file, verify_files
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest, record_verification, write_manifest
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from qwen_image_engine.runtime.tools.build.build import build_bundle
from qwen_image_engine.runtime.tools.build.plans_folder import PLANS
from qwen_image_engine.runtime.tools.build.shapes import Template, build_profiles
from tests.support.builders import install_builders
from tests.support.numpy_engines import FACTS
from tests.support.played_build import COMPONENTS, GPU, NO_TENSORS, SHAPES, FakeBuild, build
from tests.support.toy_graph import toy_graph


def test_everything_is_built_and_recorded(bundle: Path) -> None:
    run = FakeBuild()
    built = build(bundle, run)
    assert run.built == list(COMPONENTS)
    manifest = read_manifest(bundle)
    assert set(manifest.plans) == set(COMPONENTS)
    step = manifest.plans["step"][0]
    assert [item.name for item in step.profiles] == ["512x512", "1024x1024"]
    assert (step.builder, step.version, step.compute_capabilities) == ("tensorrt", "11.4.0.106", ("9.0",))
    assert (step.gpu, step.driver) == (GPU.name, 13000)
    assert built[4].entry == step
    assert verify_files(bundle, manifest) == []
    (job,) = [job for job in run.jobs if job.component == "step"]
    assert job.profiles == step.profiles
    assert job.model == str(bundle / "step.onnx")
    assert job.promise == ExpectedFusions(3, 0, 1, ("Attention_4",))
    assert job.layers == str(bundle / step.layers)
    assert job.softmax_scale == 1 / 448
    assert Path(job.timing_cache).name == "tensorrt-11.4.0.106-nvidia-h100-80gb-hbm3-sm-9.0-13000.timing"
    assert run.jobs[0].softmax_scale is None


def test_what_is_there_is_kept_by_its_key(bundle: Path) -> None:
    build(bundle, FakeBuild())
    again = FakeBuild()
    assert all(item.reused for item in build(bundle, again))
    assert again.built == []
    before = read_manifest(bundle)
    other = FakeBuild()
    build(bundle, other, replace(SHAPES, prompt_tokens=Range(1, 77, 500)))
    assert other.built == ["text_encoder", "prefix", "prefix_image", "step"]  # whose shapes have text in them
    after = read_manifest(bundle)
    assert after.plans["step"][0].key != before.plans["step"][0].key
    assert {path.name for path in (bundle / PLANS).iterdir()} == {Path(name).name for name in after.plan_files}
    assert set(after.files) - set(before.files) == {
        file for name in other.built for file in after.plans[name][0].listed
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"strip_weights": True},
        {"weight_streaming": True},
        {"workspace_bytes": 1 << 30},
        {"gpu": replace(GPU, name="NVIDIA H200")},
        {"gpu": replace(GPU, driver=13010)},
        {"gpu": replace(GPU, compute_capability="10.0")},
    ],
)
def test_another_option_or_platform_builds_again(bundle: Path, changes: dict[str, Any]) -> None:
    build(bundle, FakeBuild(), only=("step",))
    run = FakeBuild()
    build(bundle, run, only=("step",), **changes)
    assert run.built == ["step"]
    plan = read_manifest(bundle).plans["step"][0]
    assert plan.stripped is changes.get("strip_weights", False)
    assert plan.weight_streaming is changes.get("weight_streaming", False)


def test_another_graph_weight_or_tensorrt_builds_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("step.onnx", "weights.safetensors", "tensorrt"):
        build(bundle, FakeBuild(), only=("step",))
        if name == "tensorrt":
            install_builders(monkeypatch, tensorrt="11.4.1.2")
        else:
            data = toy_graph("another") if name == "step.onnx" else NO_TENSORS.replace(b" ", b"\n")
            (bundle / name).write_bytes(data)
            manifest = read_manifest(bundle)
            write_manifest(bundle, replace(manifest, files={**manifest.files, name: describe_file(bundle / name)}))
        run = FakeBuild()
        build(bundle, run, only=("step",))
        assert run.built == ["step"], name


def test_another_revision_of_the_builder_builds_again(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(bundle, FakeBuild(), only=("step",))
    monkeypatch.setattr("qwen_image_engine.runtime.tools.build.build.BUILDER_REVISION", BUILDER_REVISION + 1)
    run = FakeBuild()
    build(bundle, run, only=("step",))
    assert run.built == ["step"]


def test_a_manifest_that_promises_no_attention_is_refused(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    step = replace(manifest.components["step"], fused_attentions=None)
    write_manifest(bundle, replace(manifest, components={**manifest.components, "step": step}))
    run = FakeBuild()
    with pytest.raises(QwenImageError, match=r"step: the manifest does not name the attentions .* export the bundle"):
        build(bundle, run)
    assert run.built == []


@pytest.mark.parametrize(("place", "words"), [("gone/a.timing", "no folder .*mkdir -p"), ("", "is a folder")])
def test_a_timing_cache_that_can_be_no_file_is_told_beforehand(bundle: Path, place: str, words: str) -> None:
    run = FakeBuild()
    with pytest.raises(UsageError, match=f"--timing-cache .*: {words}"):
        build(bundle, run, timing_cache=bundle / place)
    assert run.built == []


def test_warnings_go_on(bundle: Path) -> None:
    run = FakeBuild()
    run.warnings = ("timings are not kept",)
    (built,) = build(bundle, run, only=("step",))
    assert built.warnings == ("timings are not kept",)


def test_the_account_of_a_refused_plan_stays_until_the_next_build(bundle: Path) -> None:
    class Refused(FakeBuild):
        def __call__(self, job: BuildJob, watch: Watch) -> BuildResult:
            Path(job.layers).write_text("{}", encoding="utf-8")
            return super().__call__(job, watch)

    with pytest.raises(QwenImageError):
        build(bundle, Refused("step", QwenImageError("not fused")), only=("step",))
    (layers,) = (bundle / PLANS).iterdir()
    assert layers.name.endswith(LAYERS)
    assert layers.read_text() == "{}"
    assert verify_files(bundle, read_manifest(bundle)) == []
    build(bundle, FakeBuild(), only=("prefix",))
    assert not layers.exists()


class TestPlansOfAnotherBundle:
    @pytest.fixture
    def other(self, bundle: Path, tmp_path: Path) -> Path:
        """Its manifest and plans alone, as one shares them."""
        whole = shutil.copytree(bundle, tmp_path / "whole")
        build(whole, FakeBuild(), strip_weights=True)
        shared = tmp_path / "shared"
        shared.mkdir()
        shutil.copy(whole / "manifest.json", shared)
        shutil.copytree(whole / PLANS, shared / PLANS)
        return shared

    def test_they_are_taken(self, bundle: Path, other: Path) -> None:
        run = FakeBuild()
        built = build(bundle, run, strip_weights=True, source=other)
        assert run.built == []
        assert all(item.reused for item in built)
        manifest = read_manifest(bundle)
        assert manifest.plans == read_manifest(other).plans
        assert verify_files(bundle, manifest) == []

    def test_those_of_other_weights_or_shapes_are_built(self, bundle: Path, other: Path) -> None:
        (bundle / "step.onnx").write_bytes(toy_graph("another"))
        manifest = read_manifest(bundle)
        entry = describe_file(bundle / "step.onnx")
        write_manifest(bundle, replace(manifest, files={**manifest.files, "step.onnx": entry}))
        run = FakeBuild()
        build(bundle, run, strip_weights=True, source=other)
        assert run.built == ["step"]

    def test_refusals(self, bundle: Path, other: Path) -> None:
        with pytest.raises(UsageError, match=r"--from .* without --strip-weights"):
            build(bundle, FakeBuild(), source=other)
        for source, words in ((bundle, "lists no plans"), (other / PLANS, "no manifest")):
            with pytest.raises(QwenImageError, match=words):
                build_bundle(bundle, SHAPES, BuildOptions(True), source=source, device=lambda: pytest.fail("asked"))
        path = other / read_manifest(other).plans["step"][0].file
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(QwenImageError, match=r"step-.* bytes, expected \d+"):
            build(bundle, FakeBuild(), only=("step",), strip_weights=True, source=other)
        assert "step" not in read_manifest(bundle).plans
        assert not [*bundle.rglob("*.partial")]
        path.unlink()
        with pytest.raises(QwenImageError, match=r"step-.*missing"):
            build(bundle, FakeBuild(), only=("step",), strip_weights=True, source=other)


def test_a_damaged_plan_is_built_again_and_never_kept(bundle: Path) -> None:
    build(bundle, FakeBuild(), only=("step",))
    path = bundle / read_manifest(bundle).plans["step"][0].file
    data = bytearray(path.read_bytes())
    data[7] ^= 1
    path.write_bytes(data)
    with pytest.raises(QwenImageError, match=r"step-\w+\.plan: other contents .*; build it again with: qwen"):
        check_files(bundle, read_manifest(bundle))
    run = FakeBuild()
    build(bundle, run, only=("step",))
    assert run.built == ["step"]
    check_files(bundle, read_manifest(bundle))


@pytest.mark.parametrize("error", [QwenImageError("no kernel"), KeyboardInterrupt(), OSError(28, "No space left")])
def test_an_end_midway_keeps_what_is_complete_and_nothing_else(bundle: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        build(bundle, FakeBuild("prefix", error))
    manifest = read_manifest(bundle)
    assert set(manifest.plans) == {"text_encoder", "vision"}
    assert {path.name for path in (bundle / PLANS).iterdir()} == {Path(name).name for name in manifest.plan_files}
    run = FakeBuild()
    build(bundle, run)
    assert run.built == list(COMPONENTS[2:])


def test_a_first_build_that_fails_leaves_the_bundle_as_it_was(bundle: Path) -> None:
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(QwenImageError):
        build(bundle, FakeBuild("text_encoder", QwenImageError("no")))
    assert (bundle / "manifest.json").read_bytes() == before
    assert not (bundle / PLANS).exists()


def test_what_a_killed_build_left_is_removed(bundle: Path) -> None:
    (bundle / PLANS).mkdir()
    (bundle / PLANS / ".step.partial").write_bytes(b"half")
    (bundle / PLANS / "step-0123.plan").write_bytes(b"complete and not recorded")
    (bundle / PLANS / "a.timing").write_bytes(b"timings")
    build(bundle, FakeBuild(), only=("prefix",))
    left = {path.suffix for path in (bundle / PLANS).iterdir()}
    assert left == {".plan", ".json", ".timing"}
    assert len([*(bundle / PLANS).iterdir()]) == 3


def test_links_in_the_plans_folder_lead_nowhere(bundle: Path, tmp_path: Path) -> None:
    """Timings are written through a link, and what looks like a plan is removed: not outside the bundle."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "own.plan").write_bytes(b"own")
    (bundle / PLANS).mkdir()
    (bundle / PLANS / "a.timing").symlink_to(outside / "own.plan")
    build(bundle, FakeBuild(), only=("prefix",))
    assert not (bundle / PLANS / "a.timing").is_symlink()
    shutil.rmtree(bundle / PLANS)
    (bundle / PLANS).symlink_to(outside)
    with pytest.raises(QwenImageError, match="plans: is a link out of the bundle"):
        build(bundle, FakeBuild())
    assert (outside / "own.plan").read_bytes() == b"own"


def test_one_build_at_a_time(bundle: Path) -> None:
    class Meanwhile(FakeBuild):
        def __call__(self, job: BuildJob, watch: Watch) -> BuildResult:
            with pytest.raises(QwenImageError, match=r"plans: another build is writing it; wait for that to end"):
                build(bundle, FakeBuild())
            return super().__call__(job, watch)

    before = {path.name for path in bundle.iterdir()}
    build(bundle, Meanwhile(), only=("step",))
    assert {path.name for path in bundle.iterdir()} == before | {PLANS}


def test_what_verify_writes_meanwhile_stays(bundle: Path) -> None:
    class Verifying(FakeBuild):
        def __call__(self, job: BuildJob, watch: Watch) -> BuildResult:
            record_verification(bundle, {"passed": True})
            return super().__call__(job, watch)

    build(bundle, Verifying(), only=("step",))
    manifest = read_manifest(bundle)
    assert manifest.verify == {"passed": True}
    assert set(manifest.plans) == {"step"}


def test_the_manifest_is_read_before_the_lock_under_it_and_for_each_record(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readers: list[str] = []

    def reading(name: str) -> Callable[[Path], Manifest]:
        return lambda folder: (readers.append(name), read_manifest(folder))[1]

    for name in ("request", "plans_folder", "plan_record"):
        monkeypatch.setattr(f"qwen_image_engine.runtime.tools.build.{name}.read_manifest", reading(name))
    build(bundle, FakeBuild(), only=("step", "prefix"))
    assert readers == ["request", "plans_folder", "plan_record", "plan_record"]
    readers.clear()
    build(bundle, FakeBuild(), only=("step", "prefix"))
    assert readers == ["request", "plans_folder"]


def test_without_reference_images_their_components_are_left_out(bundle: Path) -> None:
    run = FakeBuild()
    build(bundle, run, replace(SHAPES, references=Range.of(0)))
    assert run.built == ["text_encoder", "prefix", "step", "vae_decoder_mid"]
    with pytest.raises(UsageError, match="--only vision with --references 0"):
        build(bundle, FakeBuild(), replace(SHAPES, references=Range.of(0)), only=("vision",))


def test_a_bundle_without_what_reads_references(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    kept = {name: entry for name, entry in manifest.components.items() if name != "vision"}
    write_manifest(bundle, replace(manifest, components=kept))
    run = FakeBuild()
    build(bundle, run)
    assert run.built == ["text_encoder", "prefix", "step", "vae_decoder_mid"]
    with pytest.raises(UsageError, match="--references 1:1:1: the bundle has no vision"):
        build(bundle, FakeBuild(), replace(SHAPES, references=Range.of(1)))


@pytest.mark.parametrize(
    ("gpu", "changes", "words"),
    [
        (replace(GPU, compute_capability="8.6"), {}, r"step: its graph is in fp8, .* 8\.9 or newer; .* has 8\.6"),
        (replace(GPU, compute_capability="7.5"), {"only": ("step",)}, r"step: .*--target cuda --precision fp16"),
        (
            replace(GPU, compute_capability="7.5"),
            {"only": ("prefix",)},
            r"prefix: .* in bf16, .* 8\.0 or newer",
        ),
        (GPU, {"only": ("joint", "up")}, "--only joint,up: .* has text_encoder, vision"),
    ],
)
def test_refusals(bundle: Path, gpu: DeviceInfo, changes: dict[str, Any], words: str) -> None:
    run = FakeBuild()
    with pytest.raises(QwenImageError, match=words):
        build(bundle, run, gpu=gpu, **changes)
    assert run.built == []


def test_too_little_memory_for_a_profile_is_told_before_anything_is_built(bundle: Path) -> None:
    run = FakeBuild()
    words = (
        r"step: its weights take 100 bytes, inputs and outputs of the profile 1024x1024 up to \d+, .* free, 40 too "
        r"few; .*--profile.* or with --weight-stream"
    )
    with pytest.raises(QwenImageError, match=words):
        build(bundle, run, gpu=replace(GPU, free_bytes=largest_step(bundle) - 40), only=("step",))
    assert run.built == []
    build(
        bundle,
        run,
        gpu=replace(GPU, free_bytes=largest_step(bundle) - 100),
        only=("step",),
        weight_streaming=True,
    )
    assert run.built == ["step"]


def largest_step(bundle: Path) -> int:
    """Bytes of the step's weights, inputs and outputs in its largest profile."""
    manifest = read_manifest(bundle)
    spec = manifest.components["step"].contract
    *_, largest = build_profiles(spec, SHAPES, Template.of(load_tokenizer(bundle), 3), FACTS.decoder_halo)
    return 100 + port_bytes(spec, largest)


def test_activations_beyond_the_gpu_are_told_and_the_plan_kept(bundle: Path) -> None:
    run = FakeBuild()
    run.scratch = 500_000
    most = largest_step(bundle)
    gpu = replace(GPU, free_bytes=most, total_bytes=most + 900_000)
    (built,) = build(bundle, run, gpu=gpu, only=("step",))
    assert built.missing == {"1024x1024": 100_000}
    assert read_manifest(bundle).plans["step"][0].scratch_bytes == (500_000, 1_000_000)
    (again,) = build(bundle, FakeBuild(), gpu=gpu, only=("step",))
    assert (again.reused, again.missing) == (True, built.missing)


def test_a_full_disk_is_told_beforehand(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10))
    with pytest.raises(QwenImageError, match=r"engines of .* take about 700 bytes and 10 are free .* --strip-weights"):
        build(bundle, FakeBuild())
    build(bundle, FakeBuild(), strip_weights=True)


class TestCommand:
    def test_another_target(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_manifest(bundle, replace(read_manifest(bundle), target="cpu"))
        assert main(["build", str(bundle)]) == 2
        assert "is for cpu, and engines are built from graphs for TensorRT; export them" in capsys.readouterr().err

    def test_without_a_driver(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        if Path("/dev/nvidia0").exists():
            pytest.skip("this machine has a GPU")
        before = (bundle / "manifest.json").read_bytes()
        assert main(["build", str(bundle), "--json"]) == 1
        assert "no CUDA driver" in json.loads(capsys.readouterr().out)["error"]
        assert (bundle / "manifest.json").read_bytes() == before

    @pytest.mark.parametrize(
        ("flags", "words"),
        [
            (["--profile", "512"], "expected WIDTHxHEIGHT"),
            (["--profile", "500x512"], "multiple of 32"),
            (["--prompt-tokens", "5:1:7"], "expected least, best and largest in order"),
            (["--prompt-tokens", "1:2"], "expected least, best and largest in order"),
            (["--references", "x"], "expected least, best and largest in order"),
            (["--references", "11"], "expected numbers from 0 to 10"),
            (["--batch", "0"], "expected numbers from 1 to 4"),
            (["--reference-resolution", "9000"], "reference resolution"),
            (["--workspace", "0"], "expected a number of bytes"),
            (["--from", "other"], "--from other without --strip-weights"),
            (["--timing-cache", "gone/a.timing"], "no folder gone"),
        ],
    )
    def test_usage(self, bundle: Path, flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["build", str(bundle), *flags]) == 2
        assert words in capsys.readouterr().err

    def test_a_build(self, bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        monkeypatch.setattr(
            "qwen_image_engine.runtime.tools.build.build.build_bundle.__kwdefaults__",
            {**build_bundle.__kwdefaults__, "device": lambda: GPU, "run": FakeBuild()},
        )
        flags = ["--profile", "1024x1024,512x512", "--only", "step,prefix", "--batch", "1:1:2", "--references", "0"]
        assert main(["build", str(bundle), *flags, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [item["component"] for item in document["components"]] == ["prefix", "step"]
        assert document["components"][1]["fp8_products"] == 3
        assert document["components"][1]["profiles"][0]["shapes"]["latents"][2] == [2, 1024, 4]
        assert main(["build", str(bundle), *flags]) == 0
        assert "step: " in (out := capsys.readouterr().out)
        assert "there already" in out
        assert main(["inspect", str(bundle)]) == 0
        shown = capsys.readouterr().out
        assert "profiles 512x512, 1024x1024; 2 fused attentions; 3 products in FP8, 0 in INT8; up to" in shown
        assert f"of TensorRT 11.4.0.106 on {GPU.name}, compute capability 9.0, sha256 " in shown
        assert f"engine: none yet; build one with: qwen-image build {bundle}" in shown


def test_what_another_build_made_before_the_lock_is_kept(bundle: Path) -> None:
    def device() -> DeviceInfo:
        build(bundle, FakeBuild())
        return GPU

    run = FakeBuild()
    built = build_bundle(bundle, SHAPES, BuildOptions(), device=device, run=run)
    assert run.built == []
    assert all(item.reused for item in built)
