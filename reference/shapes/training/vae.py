"""The first stage of the recipe: the autoencoder learns to draw the recipe's pictures."""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from qwen_image_engine.reference.checkpoint.config import VaeConfig
from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.shapes.scenes.draw import draw
from qwen_image_engine.reference.shapes.scenes.scene import random_scene
from qwen_image_engine.reference.shapes.training.muon import Muon
from qwen_image_engine.reference.shapes.training.precision import autocast
from qwen_image_engine.reference.shapes.training.rate import share_of_rate

# Crop in pixels, batch, steps: the last steps see crops as large as a picture, for the attention of the mid block.
PHASES = ((64, 16, 3000), (128, 8, 400))
STEPS = sum(steps for _, _, steps in PHASES)
POOL = 2560
MATRIX_RATE, OTHER_RATE = 4e-3, 2e-3
KL_WEIGHT = 1e-4
EMA_DECAY = 0.995


def train_vae(config: VaeConfig, seed: int, device: str, report: Callable[[str], None]) -> Vae:
    """Train an autoencoder on crops of drawn scenes: L1 + MSE on all four channels, and a small KL term.

    Args:
        config: Sizes of the autoencoder; its latent statistics are not used here.
        seed: Seed of the weights, the pictures and the posterior noise.
        device: Device to train on.
        report: Function called with a line of progress every 100 steps.

    Returns:
        The exponential moving average of the weights, in fp32 on the CPU.

    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae = Vae(config).to(device)
    average = torch.optim.swa_utils.AveragedModel(
        vae, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(EMA_DECAY)
    )
    inner = [p for n, p in vae.named_parameters() if p.ndim == 4 and "conv_in" not in n and "conv_out" not in n]
    chosen = {id(p) for p in inner}
    optimizers: list[torch.optim.Optimizer] = [
        Muon(inner, MATRIX_RATE),
        torch.optim.AdamW([p for p in vae.parameters() if id(p) not in chosen], OTHER_RATE, betas=(0.9, 0.98)),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: share_of_rate(step, STEPS)) for o in optimizers]
    pictures = [random_picture(rng) for _ in range(POOL)]
    start, losses = time.monotonic(), []
    for step, (crop, batch) in enumerate((c, b) for c, b, steps in PHASES for _ in range(steps)):
        crops = [crop_of(pictures[i], crop, rng) for i in rng.integers(POOL, size=batch)]
        image = to_model_range(torch.from_numpy(np.stack(crops)).to(device))
        with autocast(device):
            mean, logvar = vae.moments(image)
            logvar = logvar.clamp(-20, 10)
            z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
            drawn = vae.decoder(vae.post_quant_conv(z)).float()
        kl = 0.5 * (mean.float() ** 2 + logvar.float().exp() - 1 - logvar.float()).mean()
        l1 = F.l1_loss(drawn, image)
        loss = l1 + F.mse_loss(drawn, image) + KL_WEIGHT * kl
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        average.update_parameters(vae)
        losses.append(l1.item())
        if step % 100 == 99:
            seconds = time.monotonic() - start
            report(f"vae {step + 1}/{STEPS}  l1 {np.mean(losses[-100:]):.4f}  kl {kl.item():.2f}  {seconds:.0f} s")
    vae.load_state_dict(average.module.state_dict())
    return vae.cpu().eval()


def to_model_range(image: Tensor) -> Tensor:
    """Map (B, H, W, 4) uint8 -> (B, 4, H, W) float32 in [-1, 1]."""
    return image.movedim(-1, 1).float() / 127.5 - 1


def random_picture(rng: np.random.Generator) -> NDArray[np.uint8]:
    """Draw a random scene on a square of 128 to 256 pixels."""
    side = int(rng.choice((128, 160, 192, 256), p=(0.5, 0.2, 0.15, 0.15)))
    return draw(random_scene(rng), side, side, rng)


def crop_of(picture: NDArray[np.uint8], side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return a random square crop of a picture, `side` pixels wide."""
    x, y = (int(rng.integers(n - side + 1)) for n in (picture.shape[1], picture.shape[0]))
    return picture[y : y + side, x : x + side]
