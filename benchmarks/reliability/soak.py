"""A soak: requests of ever new prompt lengths and picture sizes, with the memory of the process after them.

    python -m benchmarks.reliability.soak --engine openvino [--bundle out/demo/bundle] [--requests 1000]

Each contender is a process of its own. Contenders take each request in turn, so that other load on the machine falls on
all of them. OpenVINO has a second contender with OpenVINO's default of `CPU_RUNTIME_CACHE_CAPACITY`, which shows what a
smaller cache saves and costs. The cache of encodings is off: it grows up to its limit by design. The JSON has an entry
for each engine; a run replaces its own.
"""

import argparse
import json
import multiprocessing
import random
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from time import perf_counter, process_time
from typing import Any, NamedTuple

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from qwen_image_engine.engines.openvino import cpu
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.memory_use import MemoryUse

STEPS = 2
WORDS = (1, 300)
SIDES = range(64, 512 + 1, 32)
WARM = 100
"""Requests after which memory is taken to be at its level."""
EVERY = 50
DEFAULT_CAPACITY = 5000
"""OpenVINO's default of `CPU_RUNTIME_CACHE_CAPACITY`."""
DEFAULT = "openvino, default cache"
CONTENDERS = {"onnxruntime": ("onnxruntime",), "openvino": ("openvino", DEFAULT)}


class Drawing(NamedTuple):
    """The request of one picture."""

    prompt: str
    width: int
    height: int


@dataclass(frozen=True)
class Drawn:
    """The cost of a picture: wall-clock and CPU time [s], resident memory after it [bytes], a hash of its pixels."""

    seconds: float
    cpu_seconds: float
    resident_bytes: int
    pixels: str


class Contender:
    """A pipeline in a process of its own."""

    def __init__(self, name: str, bundle: Path, threads: int) -> None:
        spawn = multiprocessing.get_context("spawn")  # a fork would inherit the other contenders' memory
        self._end, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_draw_all, args=(theirs, name, bundle, threads), daemon=True)
        self._process.start()
        theirs.close()

    def draw(self, drawing: Drawing) -> Drawn:
        self._end.send(drawing)
        drawn: Drawn = self._end.recv()
        return drawn

    def close(self) -> None:
        self._end.send(None)
        self._process.join()


def _draw_all(requests: Connection, name: str, bundle: Path, threads: int) -> None:
    if name == DEFAULT:
        cpu.RUNTIME_CACHE_CAPACITY = DEFAULT_CAPACITY
    with QwenImage.load(bundle, engine=name.partition(",")[0], threads=threads, kept_bytes=0) as pipeline:
        while (drawing := requests.recv()) is not None:
            began, cpu_began = perf_counter(), process_time()
            (picture,) = pipeline.generate(
                drawing.prompt, width=drawing.width, height=drawing.height, steps=STEPS, seed=0
            )
            seconds, cpu_seconds = perf_counter() - began, process_time() - cpu_began
            use = MemoryUse.of()
            assert use is not None, "this system does not report a process's memory"
            requests.send(Drawn(seconds, cpu_seconds, use.resident_bytes, sha256(picture.rgba.tobytes()).hexdigest()))


def drawings(count: int) -> Iterator[Drawing]:
    """Return requests of random prompt lengths and sizes, the same in every run."""
    rng = random.Random(0)
    for _ in range(count):
        yield Drawing(" ".join(["x"] * rng.randint(*WORDS)), rng.choice(SIDES), rng.choice(SIDES))


def in_turn(contenders: Sequence[Contender], requests: Sequence[Drawing], report: bool = False) -> list[list[Drawn]]:
    """Return each contender's costs of all requests. The contender that begins alternates."""
    found: list[list[Drawn]] = [[] for _ in contenders]
    for number, drawing in enumerate(requests):
        order = range(len(contenders))
        for index in order if number % 2 else reversed(order):
            found[index].append(contenders[index].draw(drawing))
        if report and (number + 1) % EVERY == 0:
            told = ", ".join(f"{costs[-1].resident_bytes / 1e6:.0f} MB" for costs in found)
            print(f"{number + 1} requests: {told}", file=sys.stderr, flush=True)
    return found


def summary(soaked: Sequence[Drawn], repeated: Sequence[Drawn]) -> dict[str, Any]:
    resident = [drawn.resident_bytes for drawn in soaked]
    level = resident[min(WARM, len(resident)) - 1]
    return {
        "resident_bytes": {
            str(count): resident[count - 1] for count in range(1, len(resident) + 1) if count == 1 or not count % EVERY
        },
        "growth_bytes": resident[-1] - level,
        "list_s": sum(drawn.seconds for drawn in soaked),
        "list_cpu_s": sum(drawn.cpu_seconds for drawn in soaked),
        "repeated_s": median(drawn.seconds for drawn in repeated),
        "repeated_cpu_s": median(drawn.cpu_seconds for drawn in repeated),
    }


def soak(engine: str, bundle: Path, requests: int, repeats: int, threads: int) -> dict[str, Any]:
    names = CONTENDERS[engine]
    contenders = [Contender(name, bundle, threads) for name in names]
    soaked = in_turn(contenders, list(drawings(requests)), report=True)
    # Prompts of one length: the encoding of the last prompt is always kept.
    repeated = in_turn(contenders, [Drawing(f"a {'xy'[index % 2]}", 256, 256) for index in range(repeats)])
    for contender in contenders:
        contender.close()
    entry: dict[str, Any] = {
        "requests": requests,
        "threads": threads,
        **{name: summary(*costs) for name, *costs in zip(names, soaked, repeated, strict=True)},
    }
    if len(names) == 2:
        own, other = (entry[name] for name in names)
        entry["ratios"] = {key: own[key] / other[key] for key in own if key.endswith("_s")}
        pairs = zip(*soaked, strict=True)
        entry["pictures_that_differ"] = sum(own.pixels != other.pixels for own, other in pairs)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=CONTENDERS, required=True)
    parser.add_argument("--bundle", type=Path, default=Path("out/demo/bundle"))
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "soak.json")
    options = parser.parse_args()
    manifest = read_manifest(options.bundle)
    about = {"checkpoint": manifest.checkpoint.name, "precision": manifest.precision, **environment()}
    entry = soak(options.engine, options.bundle, options.requests, options.repeats, options.threads)
    engines = json.loads(options.output.read_text(encoding="utf-8"))["engines"] if options.output.exists() else {}
    document = {
        "what": f"pictures of {STEPS} steps, prompts of {WORDS[0]} to {WORDS[1]} words, sides of {SIDES[0]} to "
        f"{SIDES[-1]}, all drawn at random; resident memory after each {EVERY}; growth since request {WARM}",
        "engines": {**engines, options.engine: {**entry, **about}},
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
