"""The accuracy of `qwen-image bench`: its overhead in a step, its memory peaks, planted slowdowns, two equal runs.

python -m benchmarks.quality.bench_quality --bundle out/bench/bundle          # on an idle machine
python -m benchmarks.quality.bench_quality --bundle out/bench/bundle --tiny   # a trial; its figures say little
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.contract_check import Array
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.pipeline import PictureOrigin, QwenImage
from qwen_image_engine.runtime.timing import Timings
from qwen_image_engine.runtime.tools.bench.case import Case
from qwen_image_engine.runtime.tools.bench.contender import Runner, RunSample, pipeline_runner, run_once
from qwen_image_engine.runtime.tools.bench.measure import ROUNDS, bench
from qwen_image_engine.runtime.tools.bench.result import ContenderInfo
from qwen_image_engine.runtime.tools.bench.rounds import run_rounds
from qwen_image_engine.runtime.tools.compare.compare import compare

PLANTED = (1.10, 1.01)
MEASUREMENTS = 10_000


class SlowedEngine:
    """An engine that sleeps after each run for a share of the run's time."""

    def __init__(self, engine: Engine, slowdown: float) -> None:
        self.engine, self.slowdown = engine, slowdown

    @property
    def contract(self) -> Contract:
        return self.engine.contract

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        began = time.perf_counter()
        outputs = self.engine.run(inputs)
        time.sleep((self.slowdown - 1) * (time.perf_counter() - began))
        return outputs

    def close(self) -> None:
        self.engine.close()


class LocalContender:
    """A contender in this process, so that its engines can be slowed."""

    def __init__(self, facts: ContenderInfo, drawer: Runner) -> None:
        self.facts, self.drawer = facts, drawer

    def draw(self, case: Case, number: int, *, watched: bool, picture: bool = False) -> RunSample:
        return run_once(self.drawer, case, number, DEFAULT_RESOLUTION, picture=picture)

    def close(self) -> None:
        self.drawer.close()


def slowed_pipeline(bundle: Bundle, engine: str, threads: int | None, slowdown: float) -> QwenImage:
    load = partial(bundle.load_engine, backend=engine, threads=threads)
    step = bundle.manifest.facts.step

    def loaded(component: str) -> Engine:
        return SlowedEngine(load(component), slowdown) if component == step else load(component)

    manifest = bundle.manifest
    origin = PictureOrigin(engine, manifest.precision, manifest.checkpoint.name)
    return QwenImage(
        ComponentPool(loaded), bundle.tokenizer, bundle.embeddings(), bundle.schedule(), manifest.facts, origin
    )


def planted(bundle: Bundle, case: Case, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the verdicts on an engine with a slowed step, compared with the same engine."""
    rows = []
    for slowdown in PLANTED:
        contenders = []
        for role, factor in (("engine", slowdown), ("baseline", 1.0)):
            pipeline = slowed_pipeline(bundle, options.engine, options.threads, factor)
            contenders.append(LocalContender(ContenderInfo(f"{factor}", role), pipeline_runner(pipeline, "", "", 0)))
        for _ in range(options.repeats):
            (found,) = run_rounds(contenders, [case], options.rounds)
            judged = next(ratio.judged for ratio in found.ratios() if ratio.stage == "step")
            interval = judged.interval
            rows.append(
                {
                    "slowdown": slowdown,
                    "verdict": judged.verdict,
                    "reason": judged.reason,
                    "ratio": None if interval is None else [interval.low, interval.median, interval.high],
                }
            )
            print(rows[-1], flush=True)
        for contender in contenders:
            contender.close()
    return rows


def overhead(step_s: float) -> dict[str, float]:
    """Return the seconds that timing one run takes, and their share of a steady step."""
    timings, taken = Timings(), []
    for _ in range(MEASUREMENTS):
        began = time.perf_counter()
        with timings.measure("run", "step"):
            pass
        taken.append(time.perf_counter() - began)
    return {"clock_s": median(taken), "step_s": step_s, "share": median(taken) / step_s}


def memory(options: argparse.Namespace, output: Path) -> dict[str, Any]:
    """Compare the memory peak that `bench` reports, and the highest of its stages, with the system's count."""
    width, height = options.size
    command = [
        sys.executable,
        "-c",
        "import sys; from qwen_image_engine.runtime.cli.main import main; sys.exit(main())",
    ]
    command += [
        "bench",
        str(options.bundle),
        "--engine",
        options.engine,
        "--size",
        f"{width}x{height}",
        "--rounds",
        "1",
    ]
    command += ["-s", str(options.steps), "--output", str(output)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)  # what /usr/bin/time reads; of its own waited-for processes too
    if status:
        raise subprocess.CalledProcessError(os.waitstatus_to_exitcode(status), command)
    document = json.loads(output.read_text(encoding="utf-8"))
    (contender,), (case,) = document["ways"], document["cases"]
    peaks = [contender["load_peak"], *(peak for run in case["runs"] for peak in run["peaks"].values())]
    stages, system = max(peak["resident_bytes"] for peak in peaks), usage.ru_maxrss * 1024
    return {
        "stages_bytes": stages,
        "process_bytes": contender["peak_bytes"],
        "system_bytes": system,
        "difference": abs(contender["peak_bytes"] - system) / system,
        "difference of the highest stage": abs(stages - system) / system,
    }


def repeated(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Return the verdicts of `compare` on two runs of one bundle, and whether the ratio's interval contains 1."""
    rows = []
    for _ in range(options.repeats):
        files = []
        for name in ("first", "second"):
            found = bench(
                options.bundle,
                engines=[options.engine],
                sizes=[options.size],
                steps=[options.steps],
                rounds=options.rounds,
                threads=options.threads,
            )
            files.append(folder / f"{name}.json")
            files[-1].write_text(json.dumps(found.to_json()), encoding="utf-8")
        for row in compare(*files).rows:
            if row.what in ("step", "total"):
                held = None if row.low is None or row.high is None else row.low <= 1 <= row.high
                rows.append({"stage": row.what, "change": row.change, "ratio": row.ratio, "interval holds 1": held})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, default=Path("out/bench/bundle"))
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument(
        "--tiny", action="store_true", help="one repeat of five rounds of 64x64: seconds on an idle core"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "bench-quality.json")
    options = parser.parse_args()
    options.size, options.steps, options.rounds = ((64, 64), 3, 5) if options.tiny else ((256, 256), 20, ROUNDS)
    options.repeats = 1 if options.tiny else options.repeats

    bundle = Bundle.open(options.bundle)
    with tempfile.TemporaryDirectory() as folder:
        peaks = memory(options, Path(folder) / "memory.json")
        runs = repeated(options, Path(folder))
    case = Case(*options.size, options.steps)
    pipeline = slowed_pipeline(bundle, options.engine, options.threads, 1.0)
    with pipeline:
        drawer = pipeline_runner(pipeline, "", "", 0)
        drawn = [run_once(drawer, case, number, DEFAULT_RESOLUTION).sample for number in range(options.rounds)]
    document = {
        "what": f"{options.size[0]}x{options.size[1]}, {options.steps} steps, {options.rounds} rounds, "
        f"{options.repeats} repeats on {options.engine}",
        "checkpoint": bundle.manifest.checkpoint.name,
        "precision": bundle.manifest.precision,
        "overhead": overhead(median(seconds for sample in drawn for seconds in sample["step"])),
        "memory": peaks,
        "planted": planted(bundle, case, options),
        "two runs of one bundle": runs,
        **environment(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
