"""Peak memory of exports by checkpoint size: random weights in the released architecture, with fewer layers.

    python -m benchmarks.full_size.export_memory --work /tmp/export-memory --output RESULT.json

The checkpoint has every width of the released one (4,096 channels, 151,936 tokens, the whole VAE), so its largest
tensors are as large as the released ones. Every export runs in a process of its own, which reports its peak after
importing, after tracing and at the end. Two depths show that the peak does not grow with the checkpoint.
"""

import argparse
import json
import math
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.environment import environment
from benchmarks.common.paths import SHAPES as SMALL
from benchmarks.common.released_configs import configs_of_depth
from qwen_image_engine.runtime.system.memory_use import highest_resident_bytes

# Normal numbers in bf16, which are finite read as fp32 too: the second of a pair is the upper half of an fp32 number.
BLOCK = (np.random.default_rng(0).standard_normal(8 << 20, np.float32).view(np.uint32) >> 16).astype("<u2").tobytes()
DTYPES = {"transformer": ("BF16", 2), "text_encoder": ("BF16", 2), "vae": ("F32", 4)}
FILES = {"transformer": "diffusion_pytorch_model", "text_encoder": "model", "vae": "diffusion_pytorch_model"}
SELF = (sys.executable, "-m", "benchmarks.full_size.export_memory")
WAYS = (("fp32", "copy"), ("fp32", "link"), ("int8", "copy"))  # precision, weights


def write_checkpoint(
    folder: Path, layers: int = 1, contents: bool = True, values: Mapping[str, Any] | None = None
) -> None:
    """Write a checkpoint of random weights with the small checkpoint's tokenizer and schedule.

    Args:
        folder: folder of the checkpoint; an existing one is deleted.
        layers: blocks of the released configs; only used without `values`.
        contents: False writes weight files as holes after their headers. They take no disk space and serve readers
            that read no weights.
        values: configs by component; None for the released ones.
    """
    import torch

    from qwen_image_engine.reference.checkpoint.config import (
        TextEncoderConfig,
        TransformerConfig,
        VaeConfig,
        VisionConfig,
    )
    from qwen_image_engine.reference.networks.text_encoder import TextEncoder
    from qwen_image_engine.reference.networks.transformer import Transformer
    from qwen_image_engine.reference.networks.vae import Vae
    from qwen_image_engine.reference.networks.vision import Vision
    from qwen_image_engine.reference.storage.stored_network import LAYOUT, VISION

    shutil.rmtree(folder, ignore_errors=True)
    values = values or configs_of_depth(layers)
    for name, config in values.items():
        (folder / name).mkdir(parents=True)
        write_json(folder / name / "config.json", config)
    with torch.device("meta"):
        modules = {
            "transformer": Transformer(TransformerConfig.from_json(values["transformer"], "config")),
            "text_encoder": TextEncoder(TextEncoderConfig.from_json(values["text_encoder"], "config")),
            "vae": Vae(VaeConfig.from_json(values["vae"], "config")),
        }
    for name, module in modules.items():
        shapes = {LAYOUT[name].prefix + key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
        if name == "text_encoder":
            with torch.device("meta"):
                vision = Vision(VisionConfig.from_json(values[name], "config"))
            shapes |= {VISION.prefix + key: tuple(at.shape) for key, at in vision.state_dict().items()}
            text = values[name]["text_config"]
            shapes[LAYOUT[name].prefix + "embed_tokens.weight"] = (text["vocab_size"], text["hidden_size"])
        write_weights(folder / name / f"{FILES[name]}.safetensors", shapes, *DTYPES[name], contents)
    for name in ("scheduler", "processor"):
        shutil.copytree(SMALL / name, folder / name)
    shutil.copyfile(SMALL / "model_index.json", folder / "model_index.json")


def write_weights(
    path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str, item_bytes: int, contents: bool
) -> None:
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + math.prod(shape) * item_bytes
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        if contents:
            for count in blocks(end):
                file.write(BLOCK[:count])
        else:
            file.truncate(file.tell() + end)


def blocks(total: int) -> Iterator[int]:
    for start in range(0, total, len(BLOCK)):
        yield min(len(BLOCK), total - start)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def peak_bytes() -> int:
    """Return the peak memory of this process in bytes, mapped files included."""
    highest = highest_resident_bytes()
    if highest is None:
        raise OSError("/proc/self/status has no VmHWM: this benchmark needs Linux")
    return highest


def export(checkpoint: Path, bundle: Path, precision: str, weights: str) -> dict[str, Any]:
    """Export, and return times, sizes and memory peaks. Call it in a process of its own."""
    from qwen_image_engine.export.bundle import network_folder
    from qwen_image_engine.export.bundle.bundle import export_bundle

    peaks = {"imported": peak_bytes()}
    tracing_seconds = 0.0
    lowered = network_folder.lowered

    def timed(*arguments: Any) -> Any:
        nonlocal tracing_seconds
        began = time.perf_counter()
        graph = lowered(*arguments)
        tracing_seconds += time.perf_counter() - began
        peaks["traced"] = peak_bytes()
        return graph

    network_folder.lowered = timed
    began = time.perf_counter()
    manifest = export_bundle(checkpoint, bundle, precision=precision, weights=weights)  # type: ignore[arg-type]
    seconds = time.perf_counter() - began
    peaks["exported"] = peak_bytes()
    return {
        "seconds": round(seconds, 1),
        "tracing_seconds": round(tracing_seconds, 1),
        "peak_bytes": peaks,
        "bundle_bytes": sum(entry.bytes for entry in manifest.files.values()),
        "written_bytes": sum(
            entry.bytes for name, entry in manifest.files.items() if weights == "copy" or not name.endswith("tensors")
        ),
    }


def measure(work: Path, layers: list[int]) -> list[dict[str, Any]]:
    runs = []
    for depth in layers:
        checkpoint, bundle = work / f"checkpoint-{depth}", work / "bundle"
        subprocess.run([*SELF, "--write", str(checkpoint), "--layers", str(depth)], check=True)
        files = list(checkpoint.rglob("*.safetensors"))
        for precision, weights in WAYS:
            shutil.rmtree(bundle, ignore_errors=True)
            command = [*SELF, "--export", str(checkpoint), str(bundle), precision, weights]
            child = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            run = {
                "layers": depth,
                "precision": precision,
                "weights": weights,
                "checkpoint_bytes": sum(file.stat().st_size for file in files),
                **json.loads(child.stdout),
            }
            print(json.dumps(run), file=sys.stderr)
            runs.append(run)
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.rmtree(checkpoint)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, help="a folder with 12 GB free")
    parser.add_argument("--output", type=Path, help="the JSON to write")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--export", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_checkpoint(options.write, options.layers[0])
    elif options.export:
        checkpoint, bundle, precision, weights = options.export
        print(json.dumps(export(Path(checkpoint), Path(bundle), precision, weights)))
    else:
        options.work.mkdir(parents=True, exist_ok=True)
        runs = measure(options.work, options.layers)
        largest = 151936 * 4096 * 2
        document = {**environment(), "load_average": os.getloadavg(), "largest_tensor_bytes": largest, "runs": runs}
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
