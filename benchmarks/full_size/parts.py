"""Measurements of a bundle for `full_size.run`, each in a process of its own that loads only the runtime.

python -m benchmarks.full_size.parts pictures|step|decode BUNDLE --engine onnxruntime --width 512 --height 512
"""

import argparse
import json
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qwen_image_engine.engines.core.contract import Contract, split_axis
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.cli.shared.text import stage_seconds
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import TokenSequence
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.text.prompt import tokenize
from qwen_image_engine.runtime.timing import Timings

SENTENCE = "a red circle on the left, a blue square in the center and a green triangle at the top right, "


def pictures(options: argparse.Namespace, watch: MemoryWatch) -> dict[str, Any]:
    """Draw two pictures of one prompt, the second with another seed, and return times and memory peaks."""
    prompt, tokens = prompt_of(Bundle.open(options.bundle), options.prompt_tokens)
    began = time.perf_counter()
    found = []
    with QwenImage.load(options.bundle, options.engine, options.memory, options.threads, watch) as pipeline:
        for seed in range(2):
            picture = pipeline.generate(
                prompt, width=options.width, height=options.height, steps=options.steps, seed=seed
            )[0]
            seconds = stage_seconds(pipeline.timings.entries, [1] * picture.parameters.steps)
            found.append(
                {
                    "seed": seed,
                    "steps": picture.parameters.steps,
                    "seconds": seconds | {"total_s": time.perf_counter() - began},
                    **stages(pipeline.timings),
                }
            )
            if options.pictures is not None:
                picture.save(options.pictures / f"{options.memory}-{seed}.png")
            pipeline.timings.clear()
            began = time.perf_counter()
    return {"prompt_tokens": tokens, "pictures": found}


def step(options: argparse.Namespace, watch: MemoryWatch) -> dict[str, Any]:
    """Run steps on random inputs of the size of a picture, and return times and memory peaks."""
    bundle = Bundle.open(options.bundle)
    entry = bundle.manifest.components["step"]
    rows, columns = options.height // 16, options.width // 16
    components = ComponentPool(lambda name: bundle.load_engine(name, options.engine, options.threads), watch=watch)
    positions = TokenSequence.text_to_image(options.prompt_tokens, rows, columns).target
    cos, sin = rotary_tables(positions, bundle.manifest.facts.axes_dims_rope)
    given = {"time_features": time_features(0.5)[None], "cos": cos, "sin": sin}
    sizes = {"batch": 1, "prefix": options.prompt_tokens, "tokens": rows * columns}
    inputs = given | random_inputs(entry.contract, sizes, given)
    for _ in range(options.rounds):
        velocity = components.run("step", inputs)["velocity"]
        assert np.isfinite(velocity).all()
    components.close()
    return {**sizes, **stages(components.timings)}


def decode(options: argparse.Namespace, watch: MemoryWatch) -> dict[str, Any]:
    """Decode random latents to one picture, and return times and memory peaks."""
    tokens = options.height * options.width // 256
    with QwenImage.load(options.bundle, options.engine, "sequential", options.threads, watch) as pipeline:
        latents = np.random.default_rng(0).standard_normal((1, tokens, pipeline.facts.channels), np.float32)
        pipeline.decode(latents, options.width, options.height)
        return stages(pipeline.timings)


def stages(timings: Timings) -> dict[str, Any]:
    """Return every load and run in order, and the memory peak of each stage."""
    return {
        "stages": [{"stage": f"{item.kind} {item.component}", "seconds": item.seconds} for item in timings.entries],
        "peaks": {stage: asdict(peak) for stage, peak in timings.peaks().items()},
    }


def prompt_of(bundle: Bundle, length: int) -> tuple[str, int]:
    """Return the longest prompt of whole words whose prefix has at most `length` tokens, and its number of tokens."""
    tokenizer = bundle.tokenizer
    words = SENTENCE.split() * (length // len(SENTENCE.split()) + 1)

    def tokens(count: int) -> int:
        found = tokenize(tokenizer, " ".join(words[:count]))
        return len(found.ids) - found.dropped

    count = max(1, bisect_right(range(len(words)), length, key=tokens) - 1)
    return " ".join(words[:count]), tokens(count)


def random_inputs(contract: Contract, sizes: Mapping[str, int], given: Mapping[str, Array]) -> dict[str, Array]:
    """Return normal numbers for every input that is not in `given`."""
    rng = np.random.default_rng(0)

    def size(axis: str | int) -> int:
        if isinstance(axis, int):
            return axis
        factor, name = split_axis(axis)
        return factor * sizes[name]

    return {
        port.name: rng.standard_normal([size(axis) for axis in port.shape], np.float32)
        for port in contract.inputs
        if port.name not in given
    }


PARTS: Mapping[str, Callable[[argparse.Namespace, MemoryWatch], dict[str, Any]]] = {
    "pictures": pictures,
    "step": step,
    "decode": decode,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--engine", default="onnxruntime")
    parser.add_argument("--memory", default="sequential")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=512)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--pictures", type=Path, help="a folder to save them in")
    options = parser.parse_args()
    with MemoryWatch() as watch:
        print(json.dumps(PARTS[options.part](options, watch)))


if __name__ == "__main__":
    main()
