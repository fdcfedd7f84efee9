"""First stage of the recipe: the autoencoder learns to draw what the recipe draws."""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qwen_image_engine.reference.config import VaeConfig
from qwen_image_engine.reference.shapes.draw import draw
from qwen_image_engine.reference.shapes.scene import random_scene
from qwen_image_engine.reference.vae import Vae

CROP = 96
POOL = 3072
BATCH = 16
STEPS = 1500
LEARNING_RATE = 2e-3
KL_WEIGHT = 1e-4
EMA_DECAY = 0.995


def train_vae(config: VaeConfig, seed: int, device: str, report: Callable[[str], None]) -> Vae:
    """Train an autoencoder on crops of drawn scenes: L1 + MSE on all four channels, and a small KL term.

    Args:
        config: Sizes; the latent statistics in it are not used here.
        seed: Of the weights, the pictures and the posterior noise.
        device: Where to train.
        report: Called with a line of progress every 50 steps.

    Returns:
        The exponential moving average of the weights, in fp32 on the CPU.

    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = Vae(config).to(device)
    average = torch.optim.swa_utils.AveragedModel(vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY))
    optimizer = torch.optim.AdamW(vae.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, STEPS, pct_start=0.05)
    pool = torch.from_numpy(np.stack([_crop(rng) for _ in range(POOL)]))
    start = time.monotonic()
    for step in range(STEPS):
        picked = torch.from_numpy(rng.integers(POOL, size=BATCH))
        image = to_model_range(pool[picked].to(device))
        with torch.autocast(device, torch.bfloat16):
            mean, logvar = vae.moments(image)
            logvar = logvar.clamp(-20, 10)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            drawn = vae.decoder(vae.post_quant_conv(z)).float()
        kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()
        l1 = F.l1_loss(drawn, image)
        loss = l1 + F.mse_loss(drawn, image) + KL_WEIGHT * kl
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average.update_parameters(vae)
        if step % 50 == 49:
            report(f"vae {step + 1}/{STEPS}  l1 {l1.item():.4f}  kl {kl.item():.2f}  {time.monotonic() - start:.0f} s")
    trained: Vae = average.module.cpu().eval()
    return trained


def to_model_range(image: Tensor) -> Tensor:
    """(B, H, W, 4) uint8 -> (B, 4, H, W) float32 in [-1, 1]."""
    return image.movedim(-1, 1).float() / 127.5 - 1


def _crop(rng: np.random.Generator) -> np.ndarray:
    side = int(rng.choice((128, 192, 256)))
    picture = draw(random_scene(rng), side, side, rng)
    x, y = rng.integers(side - CROP + 1, size=2)
    return picture[y : y + CROP, x : x + CROP]
