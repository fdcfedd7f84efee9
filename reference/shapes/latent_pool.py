"""Drawn scenes and their latents, encoded once, from which the last stages of the recipe take their batches."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qwen_image_engine.reference.shapes.draw import draw
from qwen_image_engine.reference.shapes.scene import Scene, split_scene
from qwen_image_engine.reference.shapes.vae_training import to_model_range
from qwen_image_engine.reference.vae import Vae

_BATCH_PIXELS = 64 * 128 * 128


@dataclass(frozen=True)
class PoolSize:
    """Pictures of one size: how many are drawn, their share of the training steps, and how many a step takes."""

    width: int
    height: int
    scenes: int
    share: float
    batch: int


@dataclass
class Bucket:
    """Scenes of one size and their latents, as the autoencoder makes them."""

    size: PoolSize
    scenes: list[Scene]
    latents: Tensor  # (N, tokens, z) float32


@torch.inference_mode()
def encode_pool(
    vae: Vae, sizes: Iterable[PoolSize], scene_shares: tuple[float, float, float], seed: int, device: str
) -> list[Bucket]:
    """Draw and encode scenes of the training part.

    Args:
        vae: Trained autoencoder.
        sizes: What to draw.
        scene_shares: Of scenes with one, two and three shapes.
        seed: Of scenes and drawing.
        device: Where to encode.

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
            mean, _ = vae.moments(to_model_range(torch.from_numpy(pictures).to(device)))
            latents.append(mean.flatten(2).transpose(1, 2).cpu())
        buckets.append(Bucket(size, scenes, torch.cat(latents)))
    return buckets
