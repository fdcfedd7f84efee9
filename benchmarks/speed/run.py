"""The seconds of a cached step of the transformer at the released width: engines against diffusers in eager mode.

    python -m benchmarks.speed.run --profile

A checkpoint of random weights is exported as int8. For each size every contender computes the same step, from the same
keys and values of the prefix, in turn and on the same cores. The diffusers step uses its own prefix cache
(`kv_cache_mode="cached"`). Errors are against the fp32 reference.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from benchmarks.common.environment import environment
from benchmarks.common.paths import RESULTS
from benchmarks.common.wide_checkpoint import write_wide_checkpoint
from benchmarks.full_size.export_memory import write_checkpoint
from benchmarks.speed.ceilings import ceilings
from benchmarks.speed.operator_times import Inputs, onnxruntime_times, openvino_times
from benchmarks.speed.step_contenders import (
    DTYPES,
    Case,
    Way,
    diffusers_way,
    int8_ways,
    load_diffusers,
    make_case,
    reference_way,
    share_weights,
)
from qwen_image_engine.calibration.quantise.network import quantised_networks
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.export.estimate.sizes import estimate_export
from qwen_image_engine.export.targets import choose_target
from qwen_image_engine.export.verify.difference import difference
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry

BASELINES = ("diffusers fp32", "diffusers bf16")
REFERENCE = "torch reference fp32"
RELEASED_BLOCKS = 32


def measure(ways: Mapping[str, Way], case: Case, rounds: int) -> list[dict[str, Any]]:
    """Return a row for each contender with the seconds of every round; the contenders run in turn.

    A round before them warms up and gives the errors.
    """
    steps = {name: way(case) for name, way in ways.items()}
    warm = {name: step() for name, step in steps.items()}
    errors = {name: difference(found, warm[REFERENCE]).relative_l2 for name, found in warm.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            began = perf_counter()
            step()
            seconds[name].append(perf_counter() - began)
    rows = []
    for name, taken in seconds.items():
        row = {
            "tokens": case.side**2,
            "prefix": case.prefix,
            "way": name,
            "median_s": median(taken),
            "rounds_s": taken,
            "relative_l2": errors[name],
            "times_faster_than": {base: times_faster(seconds[base], taken) for base in BASELINES},
        }
        print(describe(row), flush=True)
        rows.append(row)
    return rows


def times_faster(base: list[float], own: list[float]) -> dict[str, float]:
    return {
        "median_of_ratios": median(slow / fast for slow, fast in zip(base, own, strict=True)),
        "ratio_of_medians": median(base) / median(own),
    }


def describe(row: Mapping[str, Any]) -> str:
    ratios = "  ".join(f"{ratio['ratio_of_medians']:5.2f}x {base}" for base, ratio in row["times_faster_than"].items())
    return (
        f"{row['tokens']:5} + {row['prefix']}  {row['way']:25} {row['median_s']:8.3f} s  "
        f"error {row['relative_l2']:.1e}  {ratios}"
    )


def times(
    checkpoint: Checkpoint, model: Path, entry: ComponentEntry, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], list[Case]]:
    """Return the rows of every contender at every size, and the cases."""
    models = {name: load_diffusers(checkpoint.folder, dtype) for name, dtype in DTYPES.items()}
    networks = {name: share_weights(checkpoint, eager) for name, eager in models.items()}
    ways: dict[str, Way] = {
        **{f"diffusers {name}": diffusers_way(eager) for name, eager in models.items()},
        **{f"torch reference {name}": reference_way(checkpoint, network) for name, network in networks.items()},
        **int8_ways(model, entry, options.threads),
    }
    cases = [make_case(networks["fp32"], tokens, options.prefix) for tokens in sorted(options.tokens)]
    return [row for case in cases for row in measure(ways, case, options.rounds)], cases


def profiles(
    model: Path, cases: Sequence[Case], threads: int, results: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return profiles of the timed engines at each size."""
    timed = {row["way"] for row in results}
    taken: dict[str, Callable[[Inputs], dict[str, Any]]] = {
        "ONNX Runtime int8": lambda inputs: onnxruntime_times(model, inputs, threads),
        "OpenVINO int8, rest fp32": lambda inputs: openvino_times(model, inputs, threads, "f32"),
        "OpenVINO int8, rest bf16": lambda inputs: openvino_times(model, inputs, threads, "bf16"),
    }
    rows = []
    for case in cases:
        for way, take in taken.items():
            if way in timed:
                rows.append({"tokens": case.side**2, "prefix": case.prefix, "way": way, **take(case.inputs)})
                shares = "  ".join(f"{kind} {found['share']:.1%}" for kind, found in rows[-1]["kinds"].items())
                print(f"{case.side**2:5} + {case.prefix}  {way:25} {rows[-1]['total_s']:.3f} s: {shares}", flush=True)
    return rows


def released_sizes() -> dict[str, Any]:
    """Return the bytes of the released transformer's weights in bf16 and in an int8 bundle, from headers alone."""
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder), RELEASED_BLOCKS, contents=False)
        checkpoint, chosen = Checkpoint.open(folder), choose_target("cpu", "int8")
        plan = estimate_export(checkpoint, chosen, quantised_networks(checkpoint, chosen.quantisation), "copy")
    (transformer,) = (network for network in plan.networks if network.network == "transformer")
    return {"blocks": RELEASED_BLOCKS, **_sizes(transformer.stored_bytes, transformer.bundle_bytes)}


def measured_sizes(checkpoint: Checkpoint, manifest: Manifest) -> dict[str, Any]:
    """Return the bytes of the timed transformer's weights in bf16 and in the int8 bundle."""
    stored = sum(file.stat().st_size for file in checkpoint.components["transformer"].files)
    return {
        "blocks": checkpoint.transformer.num_layers,
        **_sizes(stored, manifest.files["transformer/weights.safetensors"].bytes),
    }


def _sizes(bf16: int, int8: int) -> dict[str, Any]:
    return {"bf16_bytes": bf16, "int8_bytes": int8, "int8_share": round(int8 / bf16, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", type=int, default=32, help="of 128 channels each")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024, 4096], help="of the target: squares")
    parser.add_argument("--prefix", type=int, default=128, help="tokens")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--profile", action="store_true", help="the engines by kind of operator, at each size")
    parser.add_argument("--work", type=Path, default=Path("out/bench/speed"), help="checkpoint and bundle: 2 GB")
    parser.add_argument("--output", type=Path, default=RESULTS / "speed.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    folder, bundle = options.work / "checkpoint", options.work / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    write_wide_checkpoint(folder, options.heads, options.blocks)
    checkpoint = Checkpoint.open(folder)
    manifest = export_bundle(checkpoint, bundle, without=["vision", "vae_encoder"], precision="int8")
    entry = manifest.components["step"]
    model = bundle / entry.model
    products = ceilings(options.threads, 128 * options.heads, options.rounds)
    results, cases = times(checkpoint, model, entry, options)
    document = {
        "what": f"seconds of one cached step of {options.blocks} blocks {128 * options.heads} wide, random weights; "
        f"a round to warm up, then {options.rounds} in which every way runs in turn; diffusers eager, with its own "
        "cache of the prefix; relative L2 of the velocity against the fp32 reference",
        "threads": options.threads,
        "results": results,
        "products_gop_per_s": products,
        # Profiled graphs are loaded once more, after those that were timed are gone.
        "profiles": profiles(model, cases, options.threads, results) if options.profile else [],
        "transformer_sizes": {"released": released_sizes(), "timed": measured_sizes(checkpoint, manifest)},
        "diffusers": version("diffusers"),
        **environment(),
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(options.output, file=sys.stderr)


if __name__ == "__main__":
    main()
