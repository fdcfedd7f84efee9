"""The cost of a reference image at the released width: the cached step, the image's prefix pass, and alternatives.

    python -m benchmarks.speed.reference_images [--tokens 4096] [--image 4096] [--text 64]

A checkpoint of random weights and two blocks is exported as int8. Three cases run in turn on the same cores: a step
after text alone, a step after text and a reference image, and the pass of the image. The cost without a cache of keys
and values, "recomputed", is the image's pass plus the step. The attention of the image's pass is also timed by itself:
two calls, where only the text's has a mask, against one call whose mask covers all tokens.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from benchmarks.common.wide_checkpoint import write_wide_checkpoint
from qwen_image_engine.engines.backends import ENGINES, ON_GPU, load_engine
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.onnxruntime.cpu import session_options
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import ImageBlock, TextRun, TokenSequence
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.system.memory_use import MemoryWatch

ON_CPU = tuple(name for name in ENGINES if name not in ON_GPU)
HEADS, DIM = 32, 128
FIRST = 8
"""Text tokens before the image, as in the template."""

Array = NDArray[Any]
Work = Callable[[], Any]


def inputs(checkpoint: Checkpoint, tokens: int, image: int, text: int) -> dict[str, dict[str, Array]]:
    """Return the inputs of the step after text, of the step after text and an image, and of the image's pass."""
    config = checkpoint.transformer
    rng = np.random.default_rng(0)
    side, image_side = round(tokens**0.5), round(image**0.5)
    target = ImageBlock(side, side)
    layouts = {
        "text": TokenSequence.of([TextRun(FIRST + text)], target),
        "reference": TokenSequence.of([TextRun(FIRST), ImageBlock(image_side, image_side), TextRun(text)], target),
    }
    latents = rng.standard_normal((1, tokens, config.in_channels), dtype=np.float32)
    found = {}
    for name, layout in layouts.items():
        cos, sin = rotary_tables(layout.target, config.axes_dims_rope)
        cache = _cache(rng, config.num_layers, len(layout.prefix))
        found[name] = {"latents": latents, "time_features": time_features(0.5)[None], "cos": cos, "sin": sin, **cache}
    cos, sin = rotary_tables(layouts["reference"].prefix, config.axes_dims_rope)
    middle = FIRST + image
    found["pass"] = {
        "latents": rng.standard_normal((1, image, config.in_channels), dtype=np.float32),
        "text_states": rng.standard_normal((1, text, config.context_in_dim), dtype=np.float32),
        "image_cos": cos[FIRST:middle],
        "image_sin": sin[FIRST:middle],
        "text_cos": cos[middle:],
        "text_sin": sin[middle:],
        **_cache(rng, config.num_layers, FIRST),
    }
    return found


def _cache(rng: np.random.Generator, layers: int, tokens: int) -> dict[str, Array]:
    shape = (1, tokens, HEADS, DIM)
    names = [f"{name}_{layer}" for layer in range(layers) for name in ("key", "value")]
    return {name: rng.standard_normal(shape, dtype=np.float32) for name in names}


def in_turn(work: Mapping[str, Work], rounds: int) -> dict[str, list[float]]:
    """Run each kind of work in turn, and return the seconds of every round after a warm-up round."""
    for once in work.values():
        once()
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(rounds):
        for name, once in work.items():
            began = perf_counter()
            once()
            seconds[name].append(perf_counter() - began)
    return seconds


def steps(engines: Mapping[str, Engine], given: Mapping[str, Mapping[str, Array]], rounds: int) -> dict[str, Any]:
    step, image_pass = engines["step"], engines["prefix_image"]
    seconds = in_turn(
        {
            "step after text": lambda: step.run(given["text"]),
            "step after text and image": lambda: step.run(given["reference"]),
            "pass of the image": lambda: image_pass.run(given["pass"]),
        },
        rounds,
    )
    text, reference, own = (seconds[name] for name in seconds)
    return {
        "seconds": seconds,
        "medians_s": {name: median(taken) for name, taken in seconds.items()},
        "cached_to_text": median(slow / fast for slow, fast in zip(reference, text, strict=True)),
        "recomputed_to_text": median(
            (slow + more) / fast for slow, more, fast in zip(reference, own, text, strict=True)
        ),
    }


def attention(image: int, text: int, threads: int, rounds: int) -> dict[str, Any]:
    """Measure the attention of the image's pass in one block, with and without a mask over all tokens."""
    rng = np.random.default_rng(0)
    total = FIRST + image + text
    q = rng.standard_normal((1, image + text, HEADS * DIM), dtype=np.float32)
    k, v = (rng.standard_normal((1, total, HEADS * DIM), dtype=np.float32) for _ in range(2))
    position = np.arange(total)
    block = np.where((position >= FIRST) & (position < FIRST + image), FIRST + image - 1, position)
    mask = position[None, :] <= block[FIRST:, None]
    whole = _session(True, threads)
    parts = _session(False, threads), _session(True, threads)
    seen = FIRST + image

    def once() -> Array:
        return whole.run(None, {"q": q, "k": k, "v": v, "mask": mask})[0]

    def segments() -> Array:
        first = parts[0].run(None, {"q": q[:, :image], "k": k[:, :seen], "v": v[:, :seen]})[0]
        second = parts[1].run(None, {"q": q[:, image:], "k": k, "v": v, "mask": mask[image:]})[0]
        return np.concatenate([first, second], axis=1)

    ways: dict[str, Work] = {"one call, masked": once, "two calls": segments}
    peaks = {}
    for name, work in ways.items():
        with MemoryWatch() as watch:
            watch.restart()
            work()
            peaks[name] = watch.peak().anonymous_bytes
    error = float(np.abs(once() - segments()).max())
    seconds = in_turn(ways, rounds)
    return {
        "largest_difference": error,
        "medians_s": {name: median(taken) for name, taken in seconds.items()},
        "seconds": seconds,
        "peak_bytes": peaks,
    }


def _session(masked: bool, threads: int) -> onnxruntime.InferenceSession:
    names = ["q", "k", "v", *(["mask"] if masked else [])]
    kinds = [TensorProto.FLOAT] * 3 + [TensorProto.BOOL]
    shapes: list[list[Any]] = [[1, None, HEADS * DIM]] * 3 + [[None, None]]
    ports = [helper.make_tensor_value_info(*port) for port in zip(names, kinds, shapes, strict=False)]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, None, HEADS * DIM])
    if masked:
        node = helper.make_node("Attention", names, ["y"], q_num_heads=HEADS, kv_num_heads=HEADS)
    else:
        node = helper.make_node("MultiHeadAttention", names, ["y"], domain="com.microsoft", num_heads=HEADS)
    model = helper.make_model(
        helper.make_graph([node], "attention", ports, [output]),
        opset_imports=[helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)],
        ir_version=11,
    )
    options = session_options(onnxruntime, threads)
    options.enable_cpu_mem_arena = False
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=4096, help="of the target: a square")
    parser.add_argument("--image", type=int, default=4096, help="latents of the reference image: a square")
    parser.add_argument("--text", type=int, default=64, help="tokens after the image")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--engines", nargs="+", default=ON_CPU, choices=ON_CPU)
    parser.add_argument("--work", type=Path, default=Path("out/bench/references"), help="checkpoint and bundle: 2 GB")
    parser.add_argument("--output", type=Path, default=RESULTS / "references.json")
    options = parser.parse_args()

    folder, bundle = options.work / "checkpoint", options.work / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    write_wide_checkpoint(folder, HEADS, options.blocks)
    checkpoint = Checkpoint.open(folder)
    manifest = export_bundle(checkpoint, bundle, precision="int8")
    given = inputs(checkpoint, options.tokens, options.image, options.text)
    results = {}
    for name in options.engines:
        engines = {
            component: load_engine(name, bundle / entry.model, entry.contract, options.threads)
            for component, entry in manifest.components.items()
            if component in ("step", "prefix_image")
        }
        results[name] = steps(engines, given, options.rounds)
        for engine in engines.values():
            engine.close()
        print(name, json.dumps({k: v for k, v in results[name].items() if k != "seconds"}), flush=True)
    document = {
        "what": f"seconds of one step of {options.blocks} blocks {HEADS * DIM} wide in int8, {options.tokens} target "
        f"tokens: after {FIRST + options.text} text tokens, after those and an image of {options.image}, and the pass "
        f"of that image; each in turn, {options.rounds} rounds after one that warms up",
        "threads": options.threads,
        "engines": results,
        "attention of the pass in one block": attention(options.image, options.text, options.threads, options.rounds),
        **environment(),
    }
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document["attention of the pass in one block"]), options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
