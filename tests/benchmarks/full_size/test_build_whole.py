"""Builds of the whole model at the released size: what the committed figures hold, and which builds there are."""

import json
from typing import Any

import pytest

from benchmarks.full_size.build_whole import BUILDS
from qwen_image_engine.engines.plans.build_memory import build_memory_bytes
from qwen_image_engine.runtime.tools.build.device_memory import PlanSize
from tests.support.paths import ROOT

RUNS = json.loads((ROOT / "benchmarks" / "results" / "full-size-build.json").read_text(encoding="utf-8"))["runs"]
BOUND = [run for run in RUNS if run.get("bound_weights")]
REFUSED = [run for run in RUNS if run["error"] is not None]
PASSES = ("prefix", "prefix_image", "step")


def title(run: dict[str, Any]) -> str:
    return f"{run['component']}-{run['precision']}-{run['capability']}-{len(run['sizes'])}-{run['weights']}"


def test_every_row_is_of_a_build() -> None:
    keys = [build.key for build in BUILDS]
    for run in RUNS:
        assert {name: run[name] for name in keys[0]} in keys
    built = {(run["precision"], run["component"]) for run in BOUND}
    assert built >= {("bf16", "text_encoder"), *((precision, name) for precision in ("bf16", "fp8") for name in PASSES)}


@pytest.mark.parametrize("run", BOUND, ids=title)
def test_bound_weights_make_small_plans_on_small_machines(run: dict[str, Any]) -> None:
    assert run["error"] is None
    assert run["peak_bytes"] + run["command_bytes"] < 1.5e9  # 4 GB is the aim
    assert run["plan_bytes"] < 50e6 * run["profiles"]
    assert run["bound_bytes"] > 0.99 * run["weight_bytes"]
    assert run["fused_attentions"] == run["attentions"] > 0
    assert (run["fp8_products"] > 0) == (run["precision"] == "fp8")


@pytest.mark.parametrize("run", BOUND, ids=title)
def test_what_is_expected_before_a_build(run: dict[str, Any]) -> None:
    inside, count = run["weight_bytes"] - run["bound_bytes"], run["bound_weights"]
    assert build_memory_bytes(inside, count) == pytest.approx(run["peak_bytes"], rel=0.25)
    if len(run["sizes"]) == 3:
        code = PlanSize.estimated(run["component"], (run["component"],), 0, {"all": run["bound_bytes"]}, count).bytes
        assert 1 / 2.2 < code / run["plan_bytes"] < 2.2


@pytest.mark.parametrize("run", [run for run in BOUND if run["component"] in PASSES], ids=title)
def test_every_profile_has_the_same_kernels_in_nearly_every_block(run: dict[str, Any]) -> None:
    kernels = list(run["kernels"].values())
    assert len(kernels) == run["profiles"]
    assert len({found["block"] for found in kernels}) == 1
    for found in kernels:
        assert found["alike"] >= found["blocks"] - 1 >= 29


@pytest.mark.parametrize("run", REFUSED, ids=title)
def test_weights_inside_are_refused_before_a_build(run: dict[str, Any]) -> None:
    assert run["weights"] == "inside"
    assert run["compile_seconds"] is None
    assert run["predicted_bytes"] > 24 * 2**30
    assert "build with --weights bound" in run["error"]
