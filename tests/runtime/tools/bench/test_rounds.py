"""The rounds on the real host side and toy engines: order, what is apart, what adds up, and planted slowdowns.

Seconds come from a clock that the engines move by recorded noise, so that nothing depends on the machine.
"""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest

from qwen_image_engine.runtime.cli.verbs.bench import _lines as bench_lines
from qwen_image_engine.runtime.system.memory_use import MemoryUse
from qwen_image_engine.runtime.tools.bench.case import Case, request
from qwen_image_engine.runtime.tools.bench.contender import pipeline_runner
from qwen_image_engine.runtime.tools.bench.measure import ROUNDS
from qwen_image_engine.runtime.tools.bench.result import Benchmark, ContenderInfo
from qwen_image_engine.runtime.tools.bench.rounds import run_rounds
from qwen_image_engine.runtime.tools.bench.runs import CaseRuns
from qwen_image_engine.runtime.tools.bench.settings import Settings
from tests.support.local_contender import Clock, ClockedJournal, LocalContender, use_clock
from tests.support.numpy_engines import numpy_pipeline
from tests.support.paths import RESULTS

SPEED = RESULTS / "speed.json"
CASE = Case(64, 96, 5)
SECONDS = {
    "text_encoder": 0.5,
    "vision": 0.25,
    "vae_encoder": 0.125,
    "prefix": 0.375,
    "prefix_image": 0.4375,
    "step": 1.0,
    "vae_decoder_mid": 0.25,
    "vae_decoder_up": 0.5,
}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    use_clock(monkeypatch, clock)
    return clock


@pytest.fixture
def contender(checkpoint: Path, clock: Clock) -> Callable[..., LocalContender]:
    def make(name: str, role: str, seconds: Callable[[str], float], log: list[str]) -> LocalContender:
        pipeline = numpy_pipeline(checkpoint, ClockedJournal(clock=clock, seconds=seconds))
        return LocalContender(ContenderInfo(name, role), pipeline_runner(pipeline, "1", "fp32", 0), log)

    return make


def recorded_noise(seed: int) -> Callable[[], float]:
    """Factors around 1, of steps that were recorded: 0.93 to 1.31."""
    rows = json.loads(SPEED.read_text(encoding="utf-8"))["results"]
    factors = [seconds / median(row["rounds_s"]) for row in rows for seconds in row["rounds_s"]]
    rng = np.random.default_rng(seed)
    return lambda: float(rng.choice(factors))


def test_order_alternates_and_the_warm_up_stands_apart(contender: Callable[..., LocalContender]) -> None:
    log: list[str] = []
    contenders = [contender(name, "engine", SECONDS.__getitem__, log) for name in "AB"]
    advanced: list[None] = []
    (found,) = run_rounds(contenders, [CASE], 3, lambda: advanced.append(None))
    assert log == ["A0 watched", "B0 watched", "A1", "B1", "B2", "A2", "A3", "B3", "A4 watched", "B4 watched"]
    assert len(advanced) == len(log)
    assert [len(run.rounds) for run in found.runs] == [3, 3]


def test_stages_add_up(contender: Callable[..., LocalContender]) -> None:
    (found,) = run_rounds([contender("A", "engine", SECONDS.__getitem__, [])], [Case(64, 96, 5, 2, 1)], 2)
    (run,) = found.runs
    for sample in (run.warm_up, *run.rounds):  # nothing is reused from round to round, reference images included
        assert sample == {
            "load": (0.0,),
            "vision": (0.25,),
            "vae_encoder": (0.125,),
            "encode": (0.5,),
            "prefix": (0.375,),
            "prefix_image": (0.4375,),
            "first_step": (1.0,),
            "prefix_to_first_step": (0.375 + 0.4375 + 1.0,),
            "step": (1.0,) * 4,
            "decode": (1.5,),  # of two images
            "rest": (0.0,),
            "total": (0.25 + 0.125 + 0.5 + 0.375 + 0.4375 + 5 + 1.5,),
        } or sample == {stage: seconds for stage, seconds in run.warm_up.items() if stage != "load"}
    assert "load" not in run.rounds[0]
    assert run.steadiness == 1.0
    assert all(isinstance(peak, MemoryUse) for peak in run.peaks.values())


def test_every_round_asks_for_another_picture() -> None:
    first, second = (request(Case(64, 64, 4, references=2), number, 64) for number in (1, 2))
    again = request(Case(64, 64, 4, references=2), 1, 64)
    assert first.prompt == again.prompt != second.prompt
    assert len(first.prompt) == len(second.prompt)
    pixels = [picture.tobytes() for item in (first, second) for picture in item.references]
    assert len(set(pixels)) == 4
    assert [picture.tobytes() for picture in again.references] == pixels[:2]


def test_every_case_asks_for_other_pictures(contender: Callable[..., LocalContender]) -> None:
    """Encodings that the pipeline has kept of one case, which are of no use to the next, of the same size or not."""
    log: list[str] = []
    cases = [Case(64, 96, 5, references=1), Case(64, 96, 4, references=1), Case(96, 96, 5, references=1)]
    found = run_rounds([contender("A", "engine", SECONDS.__getitem__, log)], cases, 2)
    assert [line.split()[0] for line in log] == [f"A{number}" for number in range(12)]
    for case in found:
        for sample in (case.runs[0].warm_up, *case.runs[0].rounds):
            assert {"encode", "vision", "vae_encoder", "prefix"} <= set(sample)


def planted(contender: Callable[..., LocalContender], slowdown: float, seed: int) -> CaseRuns:
    """An engine against a baseline that is the same but for its steps, noise on both."""
    noise = recorded_noise(seed)

    def seconds(scale: float) -> Callable[[str], float]:
        return lambda component: SECONDS[component] * noise() * (scale if component == "step" else 1)

    contenders = [contender("A", "engine", seconds(slowdown), []), contender("B", "baseline", seconds(1.0), [])]
    return run_rounds(contenders, [CASE], ROUNDS)[0]


@pytest.mark.parametrize(("slowdown", "expected"), [(1.10, {"slower"}), (1.01, {"same", "unclear"})])
@pytest.mark.parametrize("seed", range(3))
def test_planted_slowdowns_of_the_step(
    contender: Callable[..., LocalContender], slowdown: float, expected: set[str], seed: int
) -> None:
    ratios = {ratio.stage: ratio.judged for ratio in planted(contender, slowdown, seed).ratios()}
    assert ratios["step"].verdict in expected
    assert ratios["encode"].verdict in {"same", "unclear"}


def test_few_rounds_print_no_ratio(contender: Callable[..., LocalContender]) -> None:
    contenders = [
        contender("A", "engine", SECONDS.__getitem__, []),
        contender("B", "baseline", SECONDS.__getitem__, []),
    ]
    (found,) = run_rounds(contenders, [CASE], 4)
    assert {ratio.judged.interval for ratio in found.ratios()} == {None}
    assert {ratio.judged.reason for ratio in found.ratios()} == {"4 pairs, a ratio needs 5"}


def test_noise_is_printed_once_of_each_way(contender: Callable[..., LocalContender]) -> None:
    """And the lines of ratios stay short."""
    steps = itertools.cycle([1.0, 1.0, 1.0, 2.0])

    def seconds(component: str) -> float:
        return next(steps) if component == "step" else SECONDS[component]

    contenders = [contender("A", "engine", seconds, []), contender("B", "baseline", seconds, [])]
    (case,) = run_rounds(contenders, [CASE], 5)
    found = Benchmark(benchmark_settings(), {}, {}, tuple(item.facts for item in contenders), (case,))
    lines = list(bench_lines(found))
    assert sum("the p90 of a steady step" in line for line in lines) == 2
    ratios = lines[next(index for index, line in enumerate(lines) if line.startswith("engine")) :]
    assert any(line.endswith("too noisy to tell") for line in ratios)
    assert max(map(len, ratios)) < 100


def benchmark_settings() -> Settings:
    lists: dict[str, Any] = {"engines": ["A"], "baselines": ["B"], "sizes": [(64, 96)], "steps": [5]}
    lists |= {"batches": [1], "references": [0]}
    return Settings.of(
        bundle="bundle", checkpoint=None, reference_resolution=32, rounds=5, threads=None, memory="resident", **lists
    )


def test_a_machine_that_slows_down_hits_both_alike(contender: Callable[..., LocalContender]) -> None:
    """Steady drift of a percent a draw: in one order the second way would be a percent slower in every pair."""
    drawn = [0]

    def seconds(component: str) -> float:
        drawn[0] += component == "text_encoder"
        return SECONDS[component] * 1.01 ** drawn[0]

    contenders = [contender("A", "engine", seconds, []), contender("B", "baseline", seconds, [])]
    ratios = {ratio.stage: ratio.judged.interval for ratio in run_rounds(contenders, [CASE], 12)[0].ratios()}
    assert ratios["decode"] is not None
    assert ratios["decode"].median == pytest.approx(1, abs=1e-3)
