"""Pools of drawn scenes and edits with their latents, encoded once. The last stages of the recipe take batches from
them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.shapes.scenes.draw import draw
from qwen_image_engine.reference.shapes.scenes.edits import KINDS, Edit, split_edit
from qwen_image_engine.reference.shapes.scenes.instructions import write_instruction
from qwen_image_engine.reference.shapes.scenes.prompts import write_prompt
from qwen_image_engine.reference.shapes.scenes.scene import Scene, split_scene
from qwen_image_engine.reference.shapes.training.vae import to_model_range
from qwen_image_engine.runtime.images.pixels import encoder_pixels

_BATCH_PIXELS = 64 * 128 * 128
COMBINE_SHARE = 0.2
# Kinds of edit with one reference, as often as they are drawn: a word is the hardest to learn.
_ONE_REFERENCE = (*KINDS[:-1], "word")


@dataclass(frozen=True)
class PoolSize:
    """The pictures of one size in a pool.

    Attributes:
        width: Width in pixels.
        height: Height in pixels.
        scenes: Number of pictures to draw.
        share: Share of the training steps.
        batch: Pictures of one step.

    """

    width: int
    height: int
    scenes: int
    share: float
    batch: int


@dataclass
class References:
    """The reference images of prompts: R pictures for each prompt, all of one size.

    Attributes:
        latents: (N, R, tokens, z) float32, as the autoencoder makes them.
        rgb: (N, R, H, W, 3) uint8, over white.

    """

    latents: Tensor
    rgb: NDArray[np.uint8]

    def of(self, picked: NDArray[np.int64]) -> References:
        """Return the reference images of some of the prompts."""
        return References(self.latents[torch.from_numpy(picked)], self.rgb[picked])


@dataclass
class Bucket:
    """Scenes or edits of one size, with the latents of the pictures to draw and the reference images of the edits."""

    size: PoolSize
    subjects: Sequence[Scene | Edit]
    latents: Tensor  # (N, tokens, z) float32, as the autoencoder makes them
    references: References | None = None

    def prompt(self, index: int, rng: np.random.Generator) -> str:
        """Return a random phrasing of a subject."""
        subject = self.subjects[index]
        return write_instruction(subject, rng) if isinstance(subject, Edit) else write_prompt(subject, rng)


@torch.inference_mode()
def encode_pool(
    vae: Vae, sizes: Iterable[PoolSize], scene_shares: tuple[float, float, float], seed: int, device: str
) -> list[Bucket]:
    """Draw and encode scenes of the training part.

    Args:
        vae: Trained autoencoder.
        sizes: Sizes to draw.
        scene_shares: Shares of scenes with one, two and three shapes.
        seed: Seed of scenes and drawing.
        device: Device to encode on.

    """
    rng = np.random.default_rng(seed)
    vae = vae.to(device)
    buckets = []
    for size in sizes:
        counts = rng.choice(3, size=size.scenes, p=scene_shares) + 1
        scenes = [split_scene(rng, held_out=False, count=int(count)) for count in counts]
        latents, batch = [], max(1, _BATCH_PIXELS // (size.width * size.height))
        for first in range(0, size.scenes, batch):
            pictures = np.stack([draw(s, size.width, size.height, rng) for s in scenes[first : first + batch]])
            latents.append(encode(vae, pictures, device))
        buckets.append(Bucket(size, scenes, torch.cat(latents)))
    return buckets


@torch.inference_mode()
def encode_edits(vae: Vae, sizes: Iterable[PoolSize], seed: int, device: str) -> list[Bucket]:
    """Draw and encode edits of the training part, with one bucket for one reference image and one for two.

    Args:
        vae: Trained autoencoder.
        sizes: Sizes to draw; `scenes` and `share` of a size count both buckets together.
        seed: Seed of edits and drawing.
        device: Device to encode on.

    """
    rng = np.random.default_rng(seed)
    vae = vae.to(device)
    buckets = []
    for size in sizes:
        for kinds, part in ((_ONE_REFERENCE, 1 - COMBINE_SHARE), (KINDS[-1:], COMBINE_SHARE)):
            count = max(1, round(size.scenes * part))
            edits = [split_edit(rng, kinds[i % len(kinds)], held_out=False) for i in range(count)]
            latents, reference_latents, rgb = [], [], []
            batch = max(1, _BATCH_PIXELS // (size.width * size.height))
            for first in range(0, count, batch):
                chosen = edits[first : first + batch]
                latents.append(encode(vae, np.stack([e.result.draw(size.width, size.height) for e in chosen]), device))
                before = [r.draw(size.width, size.height) for e in chosen for r in e.references]
                reference_latents.append(encode(vae, np.stack(before), device))
                rgb += [encoder_pixels(picture) for picture in before]
            targets = torch.cat(latents)
            references = References(
                torch.cat(reference_latents).reshape(count, -1, *targets.shape[1:]),
                np.stack(rgb).reshape(count, -1, size.height, size.width, 3),
            )
            share = PoolSize(size.width, size.height, count, size.share * part, size.batch)
            buckets.append(Bucket(share, edits, targets, references))
    return buckets


@torch.inference_mode()
def encode(vae: Vae, pictures: NDArray[np.uint8], device: str) -> Tensor:
    """Encode pictures (N, H, W, 4) uint8 -> latents (N, tokens, z) on the CPU."""
    mean, _ = vae.moments(to_model_range(torch.from_numpy(pictures).to(device)))
    return mean.flatten(2).transpose(1, 2).float().cpu()
