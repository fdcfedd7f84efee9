"""The diffusers pipeline as a contender of a benchmark, with every network timed as the pipeline calls it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.reference.baselines.checkpoint import open_checkpoint, stored_bytes
from qwen_image_engine.reference.baselines.cpu_torchvision import leave_out_operators
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.timing import Timing, Timings
from qwen_image_engine.runtime.tools.bench.case import Request
from qwen_image_engine.runtime.tools.bench.contender import Runner, Unavailable
from qwen_image_engine.runtime.tools.bench.spec import INSTALL_DIFFUSERS, ContenderSpec


def load_diffusers(spec: ContenderSpec, watch: MemoryWatch | None) -> Runner:
    """Load the pipeline as its documentation does: `from_pretrained` in one dtype, with its prefix cache on.

    Raises:
        Unavailable: diffusers does not load, or cannot run the bundle's checkpoint.
        QwenImageError: the checkpoint is missing, or its configuration is not the one that the bundle was made from.
    """
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    checkpoint = open_checkpoint(spec)
    check_drawable(checkpoint)
    leave_out_operators()
    try:
        import diffusers
        import transformers
        from diffusers import QwenImage21Pipeline
    except RuntimeError as error:  # how its lazy imports report what is wrong with a package
        raise Unavailable(
            f"diffusers does not load ({' '.join(str(error).split())}); install it again with: {INSTALL_DIFFUSERS}"
        ) from error
    dtype = torch.bfloat16 if spec.name == "diffusers-bf16" else torch.float32
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    timings = Timings(watch=watch)
    with timings.measure("load", "pipeline"):
        pipeline = QwenImage21Pipeline.from_pretrained(checkpoint.folder, dtype=dtype, variant=checkpoint.variant)
    pipeline.set_progress_bar_config(disable=True)
    time_networks(pipeline, timings)

    def draw(request: Request) -> Image.Image:
        case = request.case
        first = len(timings.entries)
        drawn = pipeline(
            prompt=request.prompt,
            image=list(request.references) or None,
            width=case.width,
            height=case.height,
            num_inference_steps=case.steps,
            num_images_per_prompt=case.batch,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            output_resolution=request.resolution,
        )
        timings.entries[first:] = without_vision(timings.entries[first:])
        picture: Image.Image = drawn.images[0]
        return picture

    loaded = str(pipeline.transformer.dtype).removeprefix("torch.")  # what it is in, not what it was asked for
    precision = DTYPES[loaded].precision
    return Runner(draw, timings, diffusers.__version__, precision, stored_bytes(checkpoint), prefix_in_first_step=True)


def check_drawable(checkpoint: Checkpoint) -> None:
    """Raise if diffusers cannot load the checkpoint from a folder.

    Raises:
        Unavailable: the checkpoint has bidirectional attention, adapters, or a transformer from a single file.
    """
    if checkpoint.transformer.bidirectional:
        raise Unavailable("diffusers has no transformer with bidirectional attention")
    if checkpoint.loras or checkpoint.transformer_file is not None:
        raise Unavailable("diffusers is run on a folder alone, and this bundle has adapters or a single file merged")


def time_networks(pipeline: Any, timings: Timings) -> None:
    """Time every call of a network. Calls of the vision tower lie inside calls of the text encoder."""
    for owner, name, component in (
        (pipeline.text_encoder, "forward", "text_encoder"),
        (pipeline.text_encoder.model.visual, "forward", "vision"),
        (pipeline.transformer, "forward", "step"),
        (pipeline.vae, "encode", "vae_encoder"),
        (pipeline.vae, "decode", "vae_decoder"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), timings, component))


def _timed(call: Callable[..., Any], timings: Timings, component: str) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        with timings.measure("run", component):
            return call(*arguments, **named)

    return timed


def without_vision(entries: list[Timing]) -> list[Timing]:
    """Return the entries with the vision tower's seconds subtracted from the text encoder's, which ran it."""
    vision_s = sum(entry.seconds for entry in entries if entry.component == "vision")
    return [
        Timing(entry.kind, entry.component, entry.seconds - vision_s, entry.peak)
        if entry.component == "text_encoder"
        else entry
        for entry in entries
    ]
