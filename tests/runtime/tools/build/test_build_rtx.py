"""Building for TensorRT for RTX, without a GPU: what is asked of the builder, recorded, kept and refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.runtime.bundle.files import verify_files
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.cli.main import main
from qwen_image_engine.runtime.tools.build.build import build_bundle
from tests.support.builders import install_builders
from tests.support.played_build import COMPONENTS, FakeBuild, build


def no_gpu() -> DeviceInfo:
    raise QwenImageError("no CUDA driver")


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch, bundle: Path) -> None:
    install_builders(monkeypatch, tensorrt_rtx="1.7.1.116")


def rtx(bundle: Path, run: FakeBuild, *capabilities: str, **changes: Any) -> Any:
    return build(bundle, run, compute_capabilities=capabilities, device=no_gpu, **changes)


def test_everything_is_built_without_a_gpu(bundle: Path) -> None:
    run = FakeBuild()
    rtx(bundle, run)
    assert sorted(run.built) == sorted(COMPONENTS)
    manifest = read_manifest(bundle)
    (step,) = manifest.plans["step"]
    assert (step.builder, step.version, step.compute_capabilities) == ("tensorrt-rtx", "1.7.1.116", ("8.9", "12.0"))
    assert (step.gpu, step.driver) == (None, None)
    (job,) = [job for job in run.jobs if job.component == "step"]
    assert (job.builder, job.compute_capabilities, job.timing_cache) == ("tensorrt-rtx", ("8.9", "12.0"), None)
    assert verify_files(bundle, manifest) == []
    again = FakeBuild()
    assert all(item.reused for item in rtx(bundle, again))
    assert again.built == []


def test_a_plan_replaces_only_the_one_for_the_same_gpus(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx(bundle, FakeBuild(), "8.9", only=("step",))
    rtx(bundle, FakeBuild(), "12.0", only=("step",))
    install_builders(monkeypatch, tensorrt="11.4.0.106")
    build(bundle, FakeBuild(), only=("step",))
    gone = bundle / read_manifest(bundle).plans["step"][0].file
    kernels = gone.with_name(f"{gone.stem}.rtx-4090-13.0-1.7.1.116.jit")
    kernels.write_bytes(b"kernels")
    install_builders(monkeypatch, tensorrt_rtx="1.7.2.1")
    rtx(bundle, FakeBuild(), "8.9", only=("step",))
    manifest = read_manifest(bundle)
    found = {(plan.builder, plan.version, plan.compute_capabilities) for plan in manifest.plans["step"]}
    assert found == {
        ("tensorrt-rtx", "1.7.2.1", ("8.9",)),
        ("tensorrt-rtx", "1.7.1.116", ("12.0",)),
        ("tensorrt", "11.4.0.106", ("9.0",)),
    }
    assert {path.name for path in (bundle / "plans").iterdir()} == {Path(name).name for name in manifest.plan_files}


def test_plans_that_somebody_removed_are_forgotten(bundle: Path) -> None:
    rtx(bundle, FakeBuild(), "8.9", only=("step", "prefix"))
    before = read_manifest(bundle)
    shutil.rmtree(bundle / "plans")
    rtx(bundle, FakeBuild(), "12.0", only=("step",))
    manifest = read_manifest(bundle)
    assert {name: [plan.compute_capabilities for plan in plans] for name, plans in manifest.plans.items()} == {
        "step": [("12.0",)]
    }
    assert not before.plan_files & set(manifest.files)
    assert verify_files(bundle, manifest) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"strip_weights": True}, "--strip-weights with --engine tensorrt-rtx"),
        ({"timing_cache": Path("a.timing")}, "--timing-cache a.timing with --engine tensorrt-rtx: it times nothing"),
        ({"source": Path("other")}, "other: does not exist"),
        ({"compute_capabilities": ("9.0",)}, "--compute-capability 9.0: TensorRT for RTX builds for 7.5, 8.0"),
        ({"compute_capabilities": ("8.6", "12.0")}, "step: its graph is in fp8, which needs .* 8.9 or .* 8.6 is asked"),
        ({"engine": "tensorrt"}, "tensorrt is not installed"),
    ],
)
def test_refusals_come_before_anything_is_built(bundle: Path, arguments: Any, words: str) -> None:
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    run = FakeBuild()
    with pytest.raises(QwenImageError, match=words):
        build(bundle, run, **{"device": no_gpu, **arguments})
    assert run.built == []
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def test_a_machine_with_too_little_memory_is_told_before(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwen_image_engine.runtime.tools.build.build.reachable_memory_bytes", lambda: 100)
    run = FakeBuild()
    with pytest.raises(QwenImageError, match=r"text_encoder: its build takes about \d+ bytes .* and 100 are free"):
        rtx(bundle, run)
    assert run.built == []


def test_what_is_built_already_needs_no_memory(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rtx(bundle, FakeBuild())
    monkeypatch.setattr("qwen_image_engine.runtime.tools.build.build.reachable_memory_bytes", lambda: 100)
    assert all(item.reused for item in rtx(bundle, FakeBuild()))


def test_other_cards_are_not_for_tensorrt(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install_builders(monkeypatch, tensorrt="11.4.0.106")
    with pytest.raises(UsageError, match=r"builds for the GPU of this machine alone; .* --engine tensorrt-rtx"):
        build(bundle, FakeBuild(), compute_capabilities=("8.9",))


class TestCommand:
    @pytest.fixture(autouse=True)
    def played(self, monkeypatch: pytest.MonkeyPatch) -> None:
        defaults = {**(build_bundle.__kwdefaults__ or {}), "device": no_gpu, "run": FakeBuild()}
        monkeypatch.setattr(build_bundle, "__kwdefaults__", defaults)

    def test_cards_by_name(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        flags = ["--only", "step", "--gpu", "rtx-5090,rtx-4090"]
        assert main(["build", str(bundle), *flags, "--json"]) == 0
        shown = capsys.readouterr()
        document = json.loads(shown.out)
        (step,) = document["components"]
        assert [card["name"] for card in document["fit"]["cards"]] == ["rtx-5090", "rtx-4090"]
        assert step["compute_capabilities"] == ["8.9", "12.0"]
        assert "building with TensorRT for RTX 1.7.1.116 for compute capability 8.9, 12.0\n" in shown.err
        assert main(["inspect", str(bundle)]) == 0
        assert "of TensorRT for RTX 1.7.1.116, compute capability 8.9, 12.0, sha256" in capsys.readouterr().out

    def test_sizes_that_the_plans_do_not_take_are_not_told(
        self, bundle: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        flags = ["--only", "step", "--gpu", "rtx-4090", "--profile", "1024x1024"]
        assert main(["build", str(bundle), *flags]) == 0
        shown = capsys.readouterr().out
        assert "1024x1024" in shown
        assert "2048x2048" not in shown

    def test_an_unknown_card_is_told_with_the_list(self, bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["build", str(bundle), "--gpu", "rtx-9999"]) == 2
        error = capsys.readouterr().err
        assert "rtx-9999" in error
        assert "rtx-5090" in error

    def test_cards_and_capabilities_are_one_choice(self, bundle: Path) -> None:
        assert main(["build", str(bundle), "--gpu", "rtx-5090", "--compute-capability", "8.9"]) == 2
