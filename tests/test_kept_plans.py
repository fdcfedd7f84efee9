"""Plans that tests keep: built again when anything that they are made from has changed, and else the same."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, BuildResult, ExpectedFusions
from qwen_image_engine.engines.tensorrt.build.launch import run_build
from tests.support.compiler import need_compiler
from tests.support.paths import ROOT
from tests.support.plans import KeptPlans, source_hash


def made_job(folder: Path, size: int = 4, weight: float = 1) -> BuildJob:
    """A job for the product of an input and of weights in a file of their own."""
    folder.mkdir()
    weights = numpy_helper.from_array(np.full((8, 8), weight, np.float32), "weight")
    shaped = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 8]) for name in ("x", "y")]
    node = helper.make_node("MatMul", ["x", "weight"], ["y"])
    graph = helper.make_graph([node], "product", shaped[:1], shaped[1:], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    return BuildJob(
        component="step",
        builder="tensorrt-rtx",
        compute_capabilities=("8.9",),
        model=str(folder / "model.onnx"),
        plan=str(folder / "plan"),
        timing_cache=None,
        profiles=(Profile("any", {"x": ((1, 8), (size, 8), (size, 8))}),),
        options=BuildOptions(),
        promise=ExpectedFusions(0, 0, 0),
        softmax_scale=None,
        layers=str(folder / "layers.json"),
    )


class Counted:
    """A build whose plan is the model's bytes, and the number of times that it ran."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, job: BuildJob, watch: Callable[[str], None]) -> BuildResult:
        self.times += 1
        data = Path(job.model).read_bytes()
        Path(job.plan).write_bytes(data)
        Path(job.layers).write_text("[]", encoding="utf-8")
        return BuildResult(len(data), "0", 1, 2, 3, (4, 5), ("warned",))


@pytest.mark.process
def test_a_kept_plan_is_the_built_one(tmp_path: Path) -> None:
    need_compiler()
    first, second = made_job(tmp_path / "a"), made_job(tmp_path / "b")
    folder = tmp_path / "kept"
    folder.mkdir()
    built = KeptPlans(run_build, folder, "a")(first, print)

    def fails(job: BuildJob, watch: Callable[[str], None]) -> BuildResult:
        raise AssertionError("it is built again")

    assert KeptPlans(fails, folder, "a")(second, print) == built
    assert Path(second.plan).read_bytes() == Path(first.plan).read_bytes()
    assert Path(second.layers).read_bytes() == Path(first.layers).read_bytes() != b""
    assert built.bytes == Path(second.plan).stat().st_size


def test_whatever_changes_is_built_again(tmp_path: Path) -> None:
    same = made_job(tmp_path / "a")
    jobs = [
        same,
        made_job(tmp_path / "profile", size=5),
        made_job(tmp_path / "weight", weight=2),
        replace(same, options=BuildOptions(weights="bound")),
        replace(same, compute_capabilities=("12.0",)),
        replace(same, promise=ExpectedFusions(1, 0, 0)),
    ]
    run = Counted()
    for source in ("a", "other sources"):
        for job in (*jobs, *jobs):
            assert KeptPlans(run, tmp_path, source)(job, print).scratch_bytes == (4, 5)
    assert run.times == 2 * len(jobs)


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    job = made_job(tmp_path / "a")

    def fails(job: BuildJob, watch: Callable[[str], None]) -> BuildResult:
        raise QwenImageError("it has no kernel")

    with pytest.raises(QwenImageError, match="no kernel"):
        KeptPlans(fails, tmp_path, "a")(job, print)
    run = Counted()
    KeptPlans(run, tmp_path, "a")(job, print)
    assert run.times == 1


@pytest.mark.parametrize("name", ["engines/tensorrt/build/builder.py", "engines/core/contract.py"])
def test_a_changed_source_of_the_engines_builds_again(tmp_path: Path, name: str) -> None:
    shutil.copytree(ROOT / "engines", tmp_path / "engines", ignore=shutil.ignore_patterns("__pycache__"))
    before = source_hash(tmp_path)
    assert before == source_hash(ROOT)
    with (tmp_path / name).open("a", encoding="utf-8") as source:
        source.write("CHANGED = 1\n")
    assert source_hash(tmp_path) != before
