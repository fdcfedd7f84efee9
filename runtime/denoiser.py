"""The network as a function for the sampler: the velocity of latents at a noise level, with or without guidance."""

import math
from functools import partial

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.device_array import DeviceArray, Values, repeat
from qwen_image_engine.engines.core.errors import OutOfMemory, UsageError
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.conditioning import Conditioning
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import ImageBlock, TokenSequence, text_mask
from qwen_image_engine.runtime.model.time import time_features
from qwen_image_engine.runtime.sampling.solver import Velocity, guide
from qwen_image_engine.runtime.system.machine import reachable_memory_bytes


def check_guidance(guidance: float, has_negative: bool) -> None:
    """Raise if guidance and negative prompt do not go together.

    diffusers only warns and generates without guidance, so the picture is not the requested picture.

    Raises:
        UsageError: guidance is above 1 without a negative prompt, a negative prompt is given without guidance above 1,
            or guidance is below 1.
    """
    if not (math.isfinite(guidance) and guidance >= 1.0):
        raise UsageError(f"guidance is {guidance:g}, expected 1 (none) or more")
    if guidance > 1.0 and not has_negative:
        raise UsageError(f"guidance {guidance:g} needs a negative prompt to steer away from; it may be empty")
    if guidance == 1.0 and has_negative:
        raise UsageError("a negative prompt needs guidance above 1, for example 3")


def _check_memory(conditioning: Conditioning, num_images: int) -> None:
    """Raise if a batch's copies of the keys and values do not fit into free host memory.

    Copies on a device need no check here: the device never overcommits memory, so their allocation fails.

    Raises:
        OutOfMemory: the copies need more memory and swap than are free.
    """
    needed = sum(item.nbytes for item in conditioning.cache.values() if not isinstance(item, DeviceArray))
    needed *= num_images
    free = reachable_memory_bytes() if num_images > 1 else None
    if free is not None and needed > free:
        raise OutOfMemory(
            f"keys and values of {num_images} images at once take {needed} bytes and {free} bytes of memory and swap "
            "are free; draw fewer at once, from one seed each"
        )


def step_inputs(
    components: ComponentPool,
    facts: ModelFacts,
    conditioning: Conditioning,
    *,
    rows: int,
    columns: int,
    num_images: int,
) -> dict[str, Values]:
    """Return the inputs that all steps of a picture share: rotary tables of its tokens, keys and values of its prefix.

    Raises:
        QwenImageError: there is no memory for a batch's copies of the keys and values.
    """
    target = TokenSequence.of(conditioning.segments, ImageBlock(rows, columns)).target
    cos, sin = rotary_tables(target, facts.axes_dims_rope)
    _check_memory(conditioning, num_images)
    # Repeated once here: a broadcast view would be copied by the engine at every step.
    cache = {
        name: components.allocate("step", partial(repeat, values, num_images))
        for name, values in conditioning.cache.items()
    }
    return {"cos": cos, "sin": sin, **cache}


def denoiser(
    components: ComponentPool,
    facts: ModelFacts,
    conditioning: Conditioning,
    negative: Conditioning | None,
    guidance: float,
    *,
    rows: int,
    columns: int,
    num_images: int,
) -> Velocity:
    """Return the velocity function of one prompt and one size.

    With guidance, both branches run one after the other at the batch's own size. They cannot run as one batch of twice
    the size, because their prefixes differ in length.

    Args:
        components: pool that runs "step", or "joint" if attention is bidirectional.
        facts: facts of the model.
        conditioning: conditioning of the prompt.
        negative: conditioning of the negative prompt; None without guidance.
        guidance: above 1 with `negative`, else 1.
        rows: rows of latents.
        columns: columns of latents.
        num_images: batch size of the latents.

    Raises:
        UsageError: guidance is above 1 without a negative prompt, a negative prompt is given without guidance above 1,
            or guidance is below 1.
        QwenImageError: there is no memory for a batch's copies of the keys and values.
    """
    check_guidance(guidance, negative is not None)

    def joint_branch(conditioning: Conditioning) -> Velocity:
        layout = TokenSequence.of(conditioning.segments, ImageBlock(rows, columns))
        is_text = text_mask(conditioning.segments)
        text_cos, text_sin = rotary_tables(layout.prefix[is_text], facts.axes_dims_rope)
        positions = np.concatenate([layout.prefix[~is_text], layout.target])
        cos, sin = rotary_tables(positions, facts.axes_dims_rope)
        fixed = {
            "text_states": np.repeat(conditioning.text_states, num_images, axis=0),
            **{"text_cos": text_cos, "text_sin": text_sin, "cos": cos, "sin": sin},
        }
        images = [np.repeat(latents, num_images, axis=0) for latents in conditioning.latents]

        def velocity(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
            inputs = {
                "latents": np.concatenate([*images, latents], axis=1),
                "time_features": time_features(sigma)[None],
            }
            found = components.run("joint", inputs | fixed)["velocity"]
            return np.ascontiguousarray(found[:, -latents.shape[1] :])

        return velocity

    def cached_branch(conditioning: Conditioning) -> Velocity:
        fixed = step_inputs(components, facts, conditioning, rows=rows, columns=columns, num_images=num_images)

        def velocity(latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
            inputs = {"latents": latents, "time_features": time_features(sigma)[None]}
            return components.run("step", {**inputs, **fixed})["velocity"]

        return velocity

    branch = joint_branch if facts.bidirectional else cached_branch
    toward = branch(conditioning)
    if negative is None:
        return toward
    away = branch(negative)
    return lambda latents, sigma: guide(toward(latents, sigma), away(latents, sigma), guidance)
