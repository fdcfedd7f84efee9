"""Third stage of the recipe: text encoder and transformer learn together to denoise the autoencoder's latents.

Flow matching (Lipman et al. 2022): x_t = (1 - t) x + t e, the network predicts e - x, t = sigmoid(normal). Matrices of
the blocks are trained with Muon, the rest with AdamW, at a rate that falls to a fiftieth.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from qwen_image_engine.reference.config import TransformerConfig
from qwen_image_engine.reference.shapes.draw import draw
from qwen_image_engine.reference.shapes.muon import Muon
from qwen_image_engine.reference.shapes.prompts import write_prompt
from qwen_image_engine.reference.shapes.scene import Scene, split_scene
from qwen_image_engine.reference.shapes.text_batch import Reader, TextBatch, initialise, tokenize_batch
from qwen_image_engine.reference.shapes.vae_training import to_model_range
from qwen_image_engine.reference.transformer import TIME_FEATURES, Transformer
from qwen_image_engine.reference.vae import Vae
from qwen_image_engine.runtime.layout import image_positions, text_positions
from qwen_image_engine.runtime.rope import rotary_tables

# Width, height, scenes in the pool, share of the steps, batch.
BUCKETS = (
    (128, 128, 7000, 0.40, 64),
    (192, 192, 1600, 0.22, 32),
    (256, 256, 1100, 0.16, 20),
    (192, 128, 1400, 0.11, 48),
    (128, 192, 1400, 0.11, 48),
)
STEPS = 2000
SMALL_ONLY = 0.35  # the first part of the steps sees 128x128 alone
MATRIX_RATE, OTHER_RATE = 2e-3, 2e-3
WARMUP, DECAY = 100, 0.45
TARGETS = 2  # noisy targets of one prompt, which share its prefix
DROP_PROMPT = 0.05  # share of empty prompts, so that guidance has something to steer from


@dataclass
class Bucket:
    """Scenes of one size and their latents, normalised."""

    width: int
    height: int
    share: float
    batch: int
    scenes: list[Scene]
    latents: Tensor  # (N, tokens, z) float16


class Denoiser(nn.Module):
    """A text reader and the transformer: what this stage trains."""

    def __init__(self, reader: Reader, transformer: TransformerConfig) -> None:
        super().__init__()
        self.reader = reader
        self.transformer = Transformer(transformer)
        initialise(self.transformer, ("to_out.0.weight", "img_mlp.out.weight", "proj_out.weight"))
        nn.init.normal_(self.transformer.modulation.get_parameter("1.weight"), std=0.02)


def train_denoiser(
    reader: Reader,
    transformer: TransformerConfig,
    tokenizer: Tokenizer,
    buckets: list[Bucket],
    seed: int,
    device: str,
    report: Callable[[str], None],
) -> Denoiser:
    """Train both networks end to end.

    Args:
        reader: What `train_reader` trained; it goes on learning.
        transformer: Sizes of the transformer.
        tokenizer: What `train_tokenizer` returned.
        buckets: What `encode_pool` returned.
        seed: Of weights, prompts, noise and times.
        device: Where to train.
        report: Called with a line of progress every 50 steps.

    Returns:
        Both networks, in fp32 on the CPU.

    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = Denoiser(reader, transformer).to(device)
    matrices, others = _split_parameters(model)
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, MATRIX_RATE, weight_decay=0.05),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, _rate) for o in optimizers]
    shares = np.array([b.share for b in buckets]) / sum(b.share for b in buckets)
    start, losses = time.monotonic(), []
    for step in range(STEPS):
        early = step < SMALL_ONLY * STEPS
        bucket = buckets[0] if early else buckets[int(rng.choice(len(buckets), p=shares))]
        picked = rng.integers(len(bucket.scenes), size=bucket.batch // TARGETS)
        prompts = ["" if rng.random() < DROP_PROMPT else write_prompt(bucket.scenes[i], rng) for i in picked]
        clean = bucket.latents[torch.from_numpy(picked.repeat(TARGETS))].to(device).float()  # (B, N, z)
        t = _times(bucket.batch).to(device)
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, t[:, None, None])
        with torch.autocast(device, torch.bfloat16):
            velocity = predict(model, tokenize_batch(tokenizer, prompts, device), noisy, t, bucket.height // 16)
        loss = F.mse_loss(velocity.float(), noise - clean)
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        losses.append(loss.item())
        if step % 50 == 49:
            report(f"denoiser {step + 1}/{STEPS}  loss {np.mean(losses[-50:]):.4f}  {time.monotonic() - start:.0f} s")
    return model.cpu().eval()


def predict(model: Denoiser, text: TextBatch, noisy: Tensor, t: Tensor, rows: int) -> Tensor:
    """Velocity for prompts of different lengths, padded, each with one or more noisy targets.

    Args:
        model: What is trained.
        text: B prompts.
        noisy: (B * K, N, z), K targets of a prompt after one another.
        t: (B * K,).
        rows: Latent rows of a target.

    Returns:
        (B * K, N, z).

    """
    device = noisy.device
    states = model.reader(text)[:, text.dropped :]
    padded, tokens = states.shape[1], noisy.shape[1]
    axes = model.transformer.config.axes_dims_rope
    cos, sin = rotary_tables(text_positions(padded), axes)
    cache = model.transformer.prefix(states, _to(cos, device), _to(sin, device))
    targets = noisy.shape[0] // len(text.lengths)
    cache = [(k.repeat_interleave(targets, 0), v.repeat_interleave(targets, 0)) for k, v in cache]
    tables = {n: rotary_tables(image_positions(rows, tokens // rows, n), axes) for n in set(text.lengths)}
    lengths = np.repeat(text.lengths, targets)
    cos, sin = (np.stack([tables[n][i] for n in lengths]) for i in range(2))
    position = torch.arange(padded + tokens)
    mask = (position[None] < torch.from_numpy(lengths)[:, None]) | (position[None] >= padded)
    return model.transformer.step(
        noisy, time_features(t), _to(cos, device), _to(sin, device), cache, mask[:, None, None].to(device)
    )


def time_features(t: Tensor) -> Tensor:
    """`runtime.schedule.time_features` for a batch of t on the device: (B,) -> (B, 256)."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-np.log(10000.0) * torch.arange(half, device=t.device) / half)
    angles = 1000 * t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


@torch.inference_mode()
def encode_pool(vae: Vae, seed: int, device: str) -> tuple[list[Bucket], Tensor, Tensor]:
    """Draw and encode the scenes of every bucket.

    Returns:
        The buckets with latents normalised per channel, and the mean and the standard deviation that normalised them,
        each (z,), measured on the first bucket.

    """
    rng = np.random.default_rng(seed)
    vae = vae.to(device)
    buckets = []
    for width, height, count, share, batch in BUCKETS:
        scenes = [split_scene(rng, held_out=False) for _ in range(count)]
        latents = []
        for first in range(0, count, 64):
            pictures = np.stack([draw(s, width, height, rng) for s in scenes[first : first + 64]])
            mean, _ = vae.moments(to_model_range(torch.from_numpy(pictures).to(device)))
            latents.append(mean.flatten(2).transpose(1, 2).cpu())
        buckets.append(Bucket(width, height, share, batch, scenes, torch.cat(latents)))
    flat = buckets[0].latents.flatten(0, 1)
    mean, std = flat.mean(0), flat.std(0)
    for bucket in buckets:
        bucket.latents = ((bucket.latents - mean) / std).half()
    return buckets, mean, std


def _times(count: int) -> Tensor:
    """sigmoid(normal), one from each of `count` equally likely strata, in random order: (count,)."""
    quantile = (torch.randperm(count) + torch.rand(count)) / count
    return torch.sigmoid(torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)))


def _split_parameters(model: Denoiser) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = "transformer_blocks" in name or "layers" in name
        (matrices if inside and parameter.ndim == 2 else others).append(parameter)
    return matrices, others


def _rate(step: int) -> float:
    """Linear warm-up, plateau, linear decay to a fiftieth."""
    return min(1.0, (step + 1) / WARMUP, max(0.02, (STEPS - step) / (DECAY * STEPS)))


def _to(table: NDArray[np.float32], device: torch.device) -> Tensor:
    return torch.from_numpy(table).to(device)
