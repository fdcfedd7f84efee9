"""The courses of the recipe: text encoder and transformer learn together to denoise the autoencoder's latents.

Flow matching (Lipman et al. 2022): x_t = (1 - t) x + t e, the network predicts e - x, t = sigmoid(normal). Matrices of
the blocks are trained with Muon, the rest with AdamW, at a rate that falls to a fiftieth. In the last course most
prompts are edits of reference images, which the vision tower and the transformer's prefix see.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from qwen_image_engine.reference.checkpoint.config import TransformerConfig
from qwen_image_engine.reference.networks.transformer import TIME_FEATURES, KeyValue, Transformer
from qwen_image_engine.reference.shapes.training.latent_pool import Bucket, PoolSize, References
from qwen_image_engine.reference.shapes.training.muon import Muon
from qwen_image_engine.reference.shapes.training.precision import autocast
from qwen_image_engine.reference.shapes.training.text_batch import Reader, TextBatch, initialise, tokenize_batch
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import ImageBlock, TextRun, TokenSequence


@dataclass(frozen=True)
class Course:
    """A part of the training in which the learning rate rises and falls once.

    Attributes:
        pool: Pictures of the course, by size.
        scene_shares: Shares of scenes with one, two and three shapes.
        steps: Training steps.
        small_only: Share of the course, from its start, that sees only the first size of the pool.
        rate: Highest learning rate.
        edits: Edits of the course, by size. Shares count all steps of the course, as in `pool`.

    """

    pool: tuple[PoolSize, ...]
    scene_shares: tuple[float, float, float]
    steps: int
    small_only: float
    rate: float
    edits: tuple[PoolSize, ...] = ()


COURSES = (
    Course(
        pool=(
            PoolSize(128, 128, scenes=7000, share=0.40, batch=64),
            PoolSize(192, 192, scenes=1600, share=0.22, batch=32),
            PoolSize(256, 256, scenes=1100, share=0.16, batch=20),
            PoolSize(192, 128, scenes=1400, share=0.11, batch=48),
            PoolSize(128, 192, scenes=1400, share=0.11, batch=48),
        ),
        scene_shares=(0.35, 0.35, 0.3),
        steps=2000,
        small_only=0.35,
        rate=2e-3,
    ),
    # After the first, a picture of 256x256 was right a third of the time, of the other sizes nine times in ten.
    Course(
        pool=(
            PoolSize(256, 256, scenes=2400, share=0.50, batch=20),
            PoolSize(192, 192, scenes=1200, share=0.17, batch=32),
            PoolSize(128, 128, scenes=1200, share=0.13, batch=64),
            PoolSize(192, 128, scenes=800, share=0.10, batch=48),
            PoolSize(128, 192, scenes=800, share=0.10, batch=48),
        ),
        scene_shares=(0.2, 0.3, 0.5),
        steps=1200,
        small_only=0.0,
        rate=1e-3,
    ),
)
# The third course: edits, and enough of the rest that it is not forgotten.
EDITS = Course(
    pool=(
        PoolSize(128, 128, scenes=1200, share=0.07, batch=32),
        PoolSize(192, 192, scenes=800, share=0.07, batch=16),
        PoolSize(256, 256, scenes=800, share=0.11, batch=10),
        PoolSize(192, 128, scenes=500, share=0.04, batch=24),
        PoolSize(128, 192, scenes=500, share=0.04, batch=24),
    ),
    scene_shares=(0.2, 0.35, 0.45),
    steps=3600,
    small_only=0.2,
    rate=2e-3,
    edits=(
        PoolSize(128, 128, scenes=3000, share=0.19, batch=32),
        PoolSize(192, 192, scenes=1100, share=0.13, batch=16),
        PoolSize(256, 256, scenes=800, share=0.15, batch=10),
        PoolSize(192, 128, scenes=1000, share=0.10, batch=20),
        PoolSize(128, 192, scenes=1000, share=0.10, batch=20),
    ),
)
WARMUP, DECAY = 100, 0.45
KEEP_SECONDS = 300
TARGETS = 2  # noisy targets of one prompt, which share its prefix
# Shift of the first target's time in an edit, to a median of 0.83. With as little noise as in text-to-image most of a
# target can be read from itself, and after 450 steps nothing was copied that the words of the edit did not say.
NOISIER = 5.0
# A word changes two or three tokens of a hundred: what an edit changes counts more than what it leaves alone.
EDITED_WEIGHT, EDITED = 4.0, 0.1
DROP_PROMPT = 0.05  # share of empty prompts, so that guidance has something to steer from


class Denoiser(nn.Module):
    """The networks that the courses train: a text reader and the transformer.

    `mean` and `std`, each (z,), are statistics of the latents' channels, measured on the first bucket of pictures.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, reader: Reader, transformer: TransformerConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((transformer.in_channels,), torch.nan))
        self.register_buffer("std", torch.full((transformer.in_channels,), torch.nan))
        self.reader = reader
        self.transformer = Transformer(transformer)
        initialise(self.transformer, ("to_out.0.weight", "img_mlp.out.weight", "proj_out.weight"))
        nn.init.normal_(self.transformer.modulation.get_parameter("1.weight"), std=0.02)


def train_denoiser(
    model: Denoiser,
    tokenizer: Tokenizer,
    course: Course,
    buckets: list[Bucket],
    seed: int,
    device: str,
    report: Callable[[str], None],
    kept: Path | None = None,
    minutes: float | None = None,
) -> None:
    """Train all networks end to end, in place.

    Args:
        model: Denoiser with the reader that `train_reader` trained; the reader continues to learn.
        tokenizer: Tokenizer from `train_tokenizer`.
        course: Course with the steps and the rate.
        buckets: Buckets of the course, from `encode_pool` and `encode_edits`.
        seed: Seed of prompts, noise and times.
        device: Device to train on; the model is left on the CPU.
        report: Function called with a line of progress every 50 steps.
        kept: File for the weights, written every five minutes, so that an interrupted run is not lost; None for none.
        minutes: Time limit [minutes; None for no limit]. The rate then falls with time, and the course may end before
            its last step.

    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    if model.mean.isnan().any():
        latents = buckets[0].latents.flatten(0, 1)
        model.mean.copy_(latents.mean(0))
        model.std.copy_(latents.std(0))
    model.to(device).train()
    matrices, others = _split_parameters(model)
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, course.rate, weight_decay=0.05),
        torch.optim.AdamW(others, lr=course.rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    shares = np.array([b.size.share for b in buckets])
    small = np.array([b.latents.shape[1] == buckets[0].latents.shape[1] for b in buckets])
    start, losses, step = time.monotonic(), list[float](), 0
    written = start
    while (progress := _progress(step, course.steps, time.monotonic() - start, minutes)) < 1:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = course.rate * _rate(step, progress)
        chances = shares * small if progress < course.small_only else shares
        bucket = buckets[int(rng.choice(len(buckets), p=chances / chances.sum()))]
        batch = bucket.size.batch
        picked = rng.integers(len(bucket.subjects), size=batch // TARGETS)
        prompts = ["" if rng.random() < DROP_PROMPT else bucket.prompt(i, rng) for i in picked]
        latents = bucket.latents[torch.from_numpy(picked.repeat(TARGETS))].to(device)
        clean = (latents - model.mean) / model.std  # (B, N, z)
        t = _times(batch).to(device)
        if bucket.references is not None:
            t[::TARGETS] = NOISIER * t[::TARGETS] / (1 + (NOISIER - 1) * t[::TARGETS])
        noise = torch.randn_like(clean)
        noisy = torch.lerp(clean, noise, t[:, None, None])
        block = ImageBlock(bucket.size.height // 16, bucket.size.width // 16)
        references = None if bucket.references is None else bucket.references.of(picked)
        count = 0 if references is None else references.latents.shape[1]
        text = tokenize_batch(tokenizer, prompts, device, [block] * count)
        with autocast(device):
            velocity = predict(model, text, references, noisy, t, block)
        errors = F.mse_loss(velocity.float(), noise - clean, reduction="none").mean(-1)
        if references is not None:
            first = ((references.latents[:, 0].to(device) - model.mean) / model.std).repeat_interleave(TARGETS, 0)
            weights = torch.where((clean - first).square().mean(-1) > EDITED, EDITED_WEIGHT, 1.0)
            errors = errors * weights / weights.mean()
        loss = errors.mean()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        step += 1
        losses.append(loss.item())
        now = time.monotonic()
        if step % 50 == 0:
            report(f"denoiser {step}/{course.steps}  loss {np.mean(losses[-50:]):.4f}  {now - start:.0f} s")
        if kept is not None and now - written > KEEP_SECONDS:
            torch.save(model.state_dict(), kept)
            written = now
    model.cpu().eval()


def predict(
    model: Denoiser, text: TextBatch, references: References | None, noisy: Tensor, t: Tensor, target: ImageBlock
) -> Tensor:
    """Return the velocity for padded prompts of different lengths, each with one or more noisy targets.

    Args:
        model: Denoiser to run.
        text: B prompts.
        references: Reference images of these prompts; None if they have none.
        noisy: (B * K, N, z), the K targets of a prompt next to one another.
        t: (B * K,), time of each target.
        target: Size of a target.

    Returns:
        (B * K, N, z).

    """
    device, axes = noisy.device, model.transformer.config.axes_dims_rope
    cache = prefix_cache(model, text, references, target)
    targets = noisy.shape[0] // len(text.lengths)
    cache = [(k.repeat_interleave(targets, 0), v.repeat_interleave(targets, 0)) for k, v in cache]
    layouts = {n: TokenSequence.of((*text.segments[:-1], TextRun(n)), target) for n in set(text.lengths)}
    tables = {n: rotary_tables(layout.target, axes) for n, layout in layouts.items()}
    lengths = np.repeat(text.lengths, targets)
    cos, sin = (np.stack([tables[n][i] for n in lengths]) for i in range(2))
    padded, tokens = cache[0][0].shape[1], noisy.shape[1]
    position = torch.arange(padded + tokens)
    valid = torch.tensor([len(layouts[n].prefix) for n in lengths])
    mask = (position[None] < valid[:, None]) | (position[None] >= padded)
    return model.transformer.step(
        noisy, time_features(t), _to(cos, device), _to(sin, device), cache, mask[:, None, None].to(device)
    )


def prefix_cache(model: Denoiser, text: TextBatch, references: References | None, block: ImageBlock) -> list[KeyValue]:
    """Return keys and values of B prompts and their reference images in every layer.

    `block` is the size of a reference image.
    """
    device, transformer = text.ids.device, model.transformer
    states = model.reader(text, None if references is None else references.rgb)
    states = states[:, text.text().to(device)]
    tables = rotary_tables(TokenSequence.of(text.segments, block).prefix, transformer.config.axes_dims_rope)
    cos, sin = (_to(table, device) for table in tables)
    runs = [segment.length for segment in text.segments if isinstance(segment, TextRun)]
    first, *others = states.split(runs, dim=1)
    end = runs[0]
    cache = transformer.prefix(first, cos[:end], sin[:end])
    for index, run in enumerate(others):
        assert references is not None
        latents = (references.latents[:, index].to(device) - model.mean) / model.std
        start, end = end, end + latents.shape[1] + run.shape[1]
        own = transformer.prefix_image(latents, run, cos[start:end], sin[start:end], cache)
        cache = [
            (torch.cat([k, own_k], dim=1), torch.cat([v, own_v], dim=1))
            for (k, v), (own_k, own_v) in zip(cache, own, strict=True)
        ]
    return cache


def time_features(t: Tensor) -> Tensor:
    """Return `runtime.model.time.time_features` of a batch of t on its device: (B,) -> (B, 256)."""
    half = TIME_FEATURES // 2
    frequencies = torch.exp(-np.log(10000.0) * torch.arange(half, device=t.device) / half)
    angles = 1000 * t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _times(count: int) -> Tensor:
    """Return samples of sigmoid(normal), one from each of `count` equally likely strata, in random order: (count,)."""
    quantile = (torch.randperm(count) + torch.rand(count)) / count
    return torch.sigmoid(torch.special.ndtri(quantile.clamp(1e-4, 1 - 1e-4)))


def _split_parameters(model: Denoiser) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        inside = any(part in name for part in ("transformer_blocks", "encoder.layers", "vision.blocks"))
        (matrices if inside and parameter.ndim == 2 else others).append(parameter)
    return matrices, others


def _progress(step: int, steps: int, seconds: float, minutes: float | None) -> float:
    return max(step / steps, 0 if minutes is None else seconds / (60 * minutes))


def _rate(step: int, progress: float) -> float:
    """Return the share of the highest rate: linear warm-up, plateau, linear decay to a fiftieth."""
    return min(1.0, (step + 1) / WARMUP, max(0.02, (1 - progress) / DECAY))


def _to(table: NDArray[np.float32], device: torch.device) -> Tensor:
    return torch.from_numpy(table).to(device)
