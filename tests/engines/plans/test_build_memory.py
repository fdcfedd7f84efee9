"""The estimates of a build's memory and of scratch memory, against what real builds took."""

import json
from typing import Any

import pytest

from qwen_image_engine.engines.core.contract import Dims, contract
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.build_memory import build_memory_bytes, check_host_memory
from qwen_image_engine.engines.plans.scratch import scratch_bytes
from tests.support.paths import ROOT

RESULTS = ROOT / "benchmarks" / "results"
RUNS = json.loads((RESULTS / "build-memory.json").read_text(encoding="utf-8"))["runs"]
BOUND = json.loads((RESULTS / "build-memory-bound.json").read_text(encoding="utf-8"))["runs"]
BUILT = [run for run in RUNS if run["error"] is None]


def title(run: dict[str, Any]) -> str:
    axes = "-".join(f"{name}{size}" for name, size in run["axes"].items() if name != "batch")
    return f"{run['checkpoint']}-{run['precision']}-{run['component']}-{axes}-{len(run['compute_capabilities'])}"


def test_what_was_measured() -> None:
    assert len(BUILT) > 30
    assert {run["precision"] for run in BUILT} == {"bf16", "fp8", "int8"}
    weights = [run["weight_bytes"] for run in BUILT]
    assert min(weights) < 2e6
    assert max(weights) > 1e9


@pytest.mark.parametrize("run", BUILT, ids=title)
def test_memory_of_a_build_within_a_quarter(run: dict[str, Any]) -> None:
    assert build_memory_bytes(run["weight_bytes"]) == pytest.approx(run["peak_bytes"], rel=0.25)


@pytest.mark.parametrize("run", BOUND, ids=title)
def test_memory_of_a_build_with_bound_weights(run: dict[str, Any]) -> None:
    assert run["error"] is None
    inside = run["weight_bytes"] - run["bound_bytes"]
    assert build_memory_bytes(inside, run["bound_weights"]) == pytest.approx(run["peak_bytes"], rel=0.25)
    assert run["plan_bytes"] < inside * 1.1 + 130e6


@pytest.mark.parametrize("run", [run for run in BUILT if run["checkpoint"] != "shapes"], ids=title)
def test_scratch_memory_at_the_released_widths(run: dict[str, Any]) -> None:
    spec = contract(run["component"], Dims(**run["dims"]), "bfloat16")
    found = scratch_bytes(spec, run["axes"], run["precision"])
    assert found == pytest.approx(run["scratch_bytes"], rel=0.15, abs=32e6)


def test_bound_weights_cost_no_memory_to_speak_of() -> None:
    most = {run["checkpoint"]: run["peak_bytes"] for run in BOUND if run["bound_bytes"] > 10**9}
    assert most
    assert max(most.values()) < 700e6  # of builds that take 3 GB with the same weights inside
    needed = build_memory_bytes(0, 230)
    check_host_memory("step", 0, needed, bound=230)
    with pytest.raises(QwenImageError, match=r"step: its build takes about \d+ bytes") as refused:
        check_host_memory("step", 0, needed - 1, bound=230)
    assert "--weights bound" not in str(refused.value)
    with pytest.raises(QwenImageError, match=r"swap included; build with --weights bound, which reads no weights"):
        check_host_memory("step", 10**9, 10**9, advise_bound=True)


def test_too_little_host_memory_is_told_in_words() -> None:
    needed = build_memory_bytes(10**9)
    check_host_memory("step", 10**9, needed)
    check_host_memory("step", 10**9, None)
    with pytest.raises(QwenImageError) as refused:
        check_host_memory("step", 10**9, needed - 1)
    text = str(refused.value)
    assert "\n" not in text
    assert text.startswith(f"step: its build takes about {needed} bytes")
    assert f"{needed - 1} are free" in text
    for helps in ("--precision fp8", "--only", "another machine"):
        assert helps in text
    with pytest.raises(QwenImageError) as refused:
        check_host_memory("text_encoder", 10**9, needed - 1)
    assert "--precision" not in str(refused.value)  # no precision quantises it
