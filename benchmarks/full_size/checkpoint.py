"""A checkpoint of random weights that has every name, shape, dtype and file of the released one.

Names and shapes come from the library's own classes, not from the networks here. The script prints the counts and the
bytes written as JSON.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.common.paths import SHAPES as SMALL
from benchmarks.common.random_tensor import RandomTensor
from benchmarks.common.released_configs import SPECIAL_TOKENS, released_configs, small_configs
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.weights.weight_file import WeightFile
from qwen_image_engine.reference.storage.stored_network import LAYOUT
from qwen_image_engine.runtime.system.progress import ProgressBar

DTYPES = {"transformer": "BF16", "text_encoder": "BF16", "vae": "F32"}
SHARDS = {"transformer": 2, "text_encoder": 4, "vae": 1}
CONFIGS = {"released": released_configs, "small": small_configs}
TURBO_SIGMAS = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)


@dataclass(frozen=True)
class Count:
    """The number of tensors and parameters of a component."""

    tensors: int
    parameters: int


RELEASED_COUNTS = {
    "transformer": Count(297, 7_115_124_736),
    "text_encoder": Count(750, 8_767_123_696),
    "vae": Count(238, 337_740_404),
}


@dataclass(frozen=True)
class Written:
    """The result of writing a checkpoint: counts by component, bytes of new weight files and of existing ones."""

    counts: Mapping[str, Count]
    written_bytes: int
    kept_bytes: int


def write_checkpoint(folder: Path, configs: Mapping[str, dict[str, Any]], turbo: bool) -> Written:
    """Write the checkpoint. Complete weight files stay; only missing ones are written.

    Args:
        folder: folder of the checkpoint.
        configs: configs by component.
        turbo: write Turbo's fixed schedule of 8 steps.

    Raises:
        QwenImageError: the disk has too little free space for the missing weight files.
    """
    configs = {name: dict(config) for name, config in configs.items()}
    generator, channels = torch.Generator().manual_seed(1), configs["vae"]["z_dim"]
    configs["vae"]["latents_mean"] = torch.randn(channels, generator=generator).mul(0.3).tolist()
    configs["vae"]["latents_std"] = torch.rand(channels, generator=generator).add(0.5).tolist()
    shapes = library_shapes(configs)
    files = {name: weight_files(name, shapes[name]) for name in configs}
    missing = [(name, file) for name in files for file in files[name] if not is_complete(folder / name, file)]
    total = sum(file.nbytes for _, file in missing)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise QwenImageError(f"{folder}: the weights take {total} bytes more, {free} are free; make room first")

    for name, config in configs.items():
        (folder / name).mkdir(exist_ok=True)
        write_json(folder / name / "config.json", config)
        write_index(folder / name, name, files[name])
    write_processor(folder / "processor")
    write_schedule(folder, turbo)
    text = "---\nlicense: other\nlicense_name: random-weights\n---\n\nRandom weights in the released layout.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
    with ProgressBar(f"writing {folder.name}", total, "bytes") as bar:
        for name, file in missing:
            path = folder / name / file.name
            partial = WeightFile(f".{file.name}.partial", file.tensors)
            partial.write(path.parent, bar.advance)
            path.with_name(partial.name).replace(path)
    kept = sum(file.nbytes for of in files.values() for file in of) - total
    counts = {name: Count(len(of), sum(map(torch.Size.numel, of.values()))) for name, of in shapes.items()}
    return Written(counts, total, kept)


def library_shapes(configs: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, torch.Size]]:
    """Return names and shapes of all tensors by component, from classes of diffusers and transformers on "meta"."""
    from benchmarks.common.diffusers_classes import (
        AutoencoderKLQwenImage21,
        Qwen3VLConfig,
        Qwen3VLForConditionalGeneration,
        QwenImage21Transformer2DModel,
    )

    with torch.device("meta"):
        modules = {
            "transformer": QwenImage21Transformer2DModel.from_config(configs["transformer"]),
            "text_encoder": Qwen3VLForConditionalGeneration(Qwen3VLConfig.from_dict(configs["text_encoder"])),
            "vae": AutoencoderKLQwenImage21.from_config(configs["vae"]),
        }
    return {name: {key: value.shape for key, value in modules[name].state_dict().items()} for name in configs}


def weight_files(component: str, shapes: Mapping[str, torch.Size]) -> list[WeightFile]:
    """Return the component's shards, of about equal size, or its one file."""
    stem, shards = LAYOUT[component].weights, SHARDS[component]
    tensors = [RandomTensor(name, DTYPES[component], tuple(shape)) for name, shape in shapes.items()]
    if shards == 1:
        return [WeightFile(f"{stem}.safetensors", tensors)]
    parts = split(tensors, [shape.numel() for shape in shapes.values()], shards)
    return [
        WeightFile(f"{stem}-{number:05}-of-{shards:05}.safetensors", part) for number, part in enumerate(parts, start=1)
    ]


def split(tensors: list[RandomTensor], sizes: list[int], shards: int) -> Iterator[list[RandomTensor]]:
    """Yield consecutive parts of `tensors`.

    A part ends when it has reached its share of the whole. It leaves at least one tensor for each later part.
    """
    share, done, part = sum(sizes) / shards, 0, 1
    current: list[RandomTensor] = []
    for index, (tensor, size) in enumerate(zip(tensors, sizes, strict=True)):
        current.append(tensor)
        done += size
        left = len(tensors) - index - 1
        if part < shards and (done >= part * share or left == shards - part):
            yield current
            current, part = [], part + 1
    yield current


def is_complete(folder: Path, file: WeightFile) -> bool:
    """Return whether the file exists with its size and header. It gets its name only when it is complete."""
    path = folder / file.name
    if not path.is_file() or path.stat().st_size != file.nbytes:
        return False
    with path.open("rb") as stored:
        return stored.read(len(file.header)) == file.header


def write_index(folder: Path, component: str, files: list[WeightFile]) -> None:
    """Write the index of tensors and shards, if there is more than one shard."""
    if len(files) > 1:
        places = {tensor.name: file.name for file in files for tensor in file.tensors}
        total = sum(place.nbytes for file in files for place in file.places().values())
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(folder / f"{LAYOUT[component].weights}.safetensors.index.json", index)


def write_processor(folder: Path) -> None:
    """Copy the small checkpoint's processor, and move the special tokens to the released ids."""
    shutil.copytree(SMALL / "processor", folder, dirs_exist_ok=True)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    for number, token in enumerate(tokenizer["added_tokens"]):
        token["id"] = tokenizer["model"]["vocab"][token["content"]] = SPECIAL_TOKENS + number
    write_json(path, tokenizer)


def write_schedule(folder: Path, turbo: bool) -> None:
    """Write the released schedule, which the small checkpoint has too, or Turbo's."""
    index = json.loads((SMALL / "model_index.json").read_text(encoding="utf-8"))
    schedule = json.loads((SMALL / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
    if turbo:
        index["sample_sigmas"] = list(TURBO_SIGMAS)
        schedule |= {"use_dynamic_shifting": False, "shift": 1.0, "shift_terminal": None}
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "model_index.json", index)
    write_json(folder / "scheduler" / "scheduler_config.json", schedule)


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--scale", choices=CONFIGS, default="released")
    parser.add_argument("--turbo", action="store_true")
    options = parser.parse_args()
    try:
        written = write_checkpoint(options.folder, CONFIGS[options.scale](), options.turbo)
    except QwenImageError as error:
        print(error, file=sys.stderr)
        return 1
    if options.scale == "released" and written.counts != RELEASED_COUNTS:
        print(f"expected {RELEASED_COUNTS}, the library's classes have {written.counts}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(written)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
