"""The table of targets: rows that are whole, and a module that the command can read without torch."""

import subprocess
import sys

import pytest

from qwen_image_engine.engines.backends import BACKENDS, backends_for
from qwen_image_engine.engines.core.components import COMPONENTS, NETWORKS
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.export.checks.tensorrt_rules import RULES
from qwen_image_engine.export.passes.gates_apart import GatesApart
from qwen_image_engine.export.passes.joint_square_mean import JointSquareMean
from qwen_image_engine.export.targets import TARGETS, Target, choose_target, thresholds
from qwen_image_engine.export.thresholds import TEACHER_FORCED


@pytest.mark.parametrize("row", TARGETS.values(), ids=map(" ".join, TARGETS))
def test_a_row_is_whole(row: Target) -> None:
    assert row.passes()
    assert bool(row.quantising()) == (row.quantisation is not None)
    assert row.rules is None or set(row.rules()) <= set(RULES)
    assert {DTYPES[row.dtype_of(network)].precision for network in NETWORKS} <= {"fp32", "bf16", "fp16"}
    assert set(row.thresholds) == {*COMPONENTS, TEACHER_FORCED}
    assert row.engines


def test_each_target_has_engines_of_its_own_or_those_that_no_target_names() -> None:
    assert backends_for("cuda") == ("onnxruntime-cuda",)
    assert backends_for("tensorrt") == ("tensorrt", "tensorrt-rtx")
    assert backends_for("cpu") == backends_for("tensorrt-twin") == ("onnxruntime", "openvino", "openvino-bf16")
    assert {row.target for row in BACKENDS.values() if row.target} <= {row.name for row in TARGETS.values()}


def test_a_row_knows_where_its_graphs_run() -> None:
    assert {row.name for row in TARGETS.values() if row.on_gpu} == {"cuda", "tensorrt"}
    assert {row.name for row in TARGETS.values() if row.runs_plans} == {"tensorrt"}


@pytest.mark.parametrize(
    ("target", "precision"), [("cpu", "fp32"), ("cuda", "bf16"), ("tensorrt", "bf16"), ("tensorrt-twin", "fp8")]
)
def test_the_first_row_of_a_target_is_its_default(target: str, precision: str) -> None:
    assert choose_target(target, None) == TARGETS[target, precision]


def test_gates_are_apart_in_bf16_for_tensorrt_unless_they_may_be_merged() -> None:
    for row in TARGETS.values():
        apart = (row.name, row.precision) == ("tensorrt", "bf16")
        assert (GatesApart in row.passes()) == apart == (row.merging is not None)
        assert (JointSquareMean in row.passes()) == row.name.startswith("tensorrt")
    merged = choose_target("tensorrt", "bf16", merged_gates=True)
    assert [*merged.passes(), GatesApart] == [*choose_target("tensorrt", "bf16").passes()]
    with pytest.raises(UsageError, match=r"--merged-gates with --target tensorrt --precision fp8.* --precision bf16"):
        choose_target("tensorrt", "fp8", merged_gates=True)


def test_unknown_pairs() -> None:
    with pytest.raises(UsageError, match=r"cannot export for target 'tpu' .*; known: --target cpu --precision fp32, "):
        choose_target("tpu", None)
    assert thresholds("tensorrt", "int4", "tensorrt") is None


@pytest.mark.process
def test_the_command_reads_the_table_without_torch() -> None:
    code = (
        "import sys; import qwen_image_engine.export.targets; "
        "sys.exit(', '.join({'torch', 'onnx', 'onnx_ir'} & {*sys.modules}) or None)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
