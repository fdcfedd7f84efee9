"""A process that builds: its result, its errors, and its end without a word."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, BuildResult, ExpectedFusions
from qwen_image_engine.engines.tensorrt.build.launch import run_build

JOB = BuildJob(
    component="step",
    builder="tensorrt-rtx",
    compute_capabilities=("8.9", "12.0"),
    model="step.onnx",
    plan="step.plan",
    timing_cache="step.timing",
    profiles=(Profile("512x512", {"latents": ((1, 4, 8), (1, 1024, 8), (1, 1024, 8))}),),
    options=BuildOptions(strip_weights=True, workspace_bytes=7),
    promise=ExpectedFusions(3, 0, 1, ("Attention_4", "Attention_9")),
    softmax_scale=1 / 448,
    layers="step.layers.json",
)
RESULT = BuildResult(
    bytes=4,
    sha256="ab",
    fused_attentions=1,
    fp8_products=3,
    int8_products=0,
    scratch_bytes=(7, 8),
    warnings=("full",),
)


def child(*lines: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "\n".join(("import json, os, sys, time", "job = json.load(sys.stdin)", *lines)))


def test_a_job_survives_its_way() -> None:
    assert BuildJob.from_json(JOB.to_json()) == JOB


@pytest.mark.process
def test_progress_and_result() -> None:
    said: list[str] = []
    found = run_build(
        JOB,
        said.append,
        child(
            'print(json.dumps({"phase": job["component"], "done": 1, "steps": 4}), flush=True)',
            'print("x" * 100_000, file=sys.stderr)',  # more than a pipe holds
            f"print(json.dumps({{'result': {RESULT.__dict__!r}}}))",
        ),
    )
    assert found == RESULT
    assert "step 1/4" in said


@pytest.mark.process
def test_an_error_is_passed_on() -> None:
    with pytest.raises(QwenImageError, match=r"^no parser$"):
        run_build(JOB, lambda words: None, child('print(json.dumps({"error": "no parser"}))', "sys.exit(1)"))


@pytest.mark.process
@pytest.mark.parametrize(
    ("end", "words"),
    [
        ("os.kill(os.getpid(), 11)", r"step: the process .* ended with signal SIGSEGV; its last words: out of luck"),
        ("sys.exit(3)", "exit code 3"),
        ("raise RuntimeError('a bug')", "exit code 1; .* RuntimeError: a bug"),
    ],
)
def test_a_crash_is_told(end: str, words: str) -> None:
    with pytest.raises(QwenImageError, match=words):
        run_build(JOB, lambda words: None, child('print("out of luck", file=sys.stderr, flush=True)', end))


@pytest.mark.process
def test_a_process_that_reads_nothing() -> None:
    with pytest.raises(QwenImageError, match="exit code 0; its last words: nothing"):
        run_build(JOB, lambda words: None, (sys.executable, "-c", "pass"))


@pytest.mark.process
def test_an_interruption_ends_the_process() -> None:
    pids: list[int] = []

    def interrupt(words: str) -> None:
        if words.isdecimal():
            pids.append(int(words))
            raise KeyboardInterrupt

    endless = ('print(json.dumps({"phase": str(os.getpid()), "done": 0, "steps": 0}), flush=True)', "time.sleep(600)")
    with pytest.raises(KeyboardInterrupt):
        run_build(JOB, interrupt, child(*endless))
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], 0)


@pytest.mark.process
def test_without_a_driver_the_real_process_tells_so() -> None:
    if Path("/dev/nvidia0").exists():
        pytest.skip("this machine has a GPU")
    with pytest.raises(QwenImageError, match=r"no CUDA driver: libcuda\.so\.1 cannot be loaded"):
        run_build(replace(JOB, builder="tensorrt", compute_capabilities=()), lambda words: None)
