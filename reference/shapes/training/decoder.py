"""The last stage of the recipe: the autoencoder's decoder learns edges better.

An edit must leave most pixels within 8/255 of its reference image. The encoder stays the same, and so do the latents
that the transformer has learnt.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.shapes.training.muon import Muon
from qwen_image_engine.reference.shapes.training.precision import autocast
from qwen_image_engine.reference.shapes.training.rate import share_of_rate
from qwen_image_engine.reference.shapes.training.vae import crop_of, random_picture, to_model_range

# Crop in pixels, batch, steps.
PHASES = ((64, 24, 2600), (128, 8, 1400))
POOL = 3000
MATRIX_RATE, OTHER_RATE = 2e-3, 1e-3
# An error of 8/255 counts half in the robust part of the loss, which is deaf to how much larger it is.
CLOSE = 8 / 127.5
EMA_DECAY = 0.995
# Of what was learnt here. Deaf to how far off a pixel is, the loss teaches to draw no faint letter at all: with all of
# it 20% of the words that edits add were there and 97.2% of the other pixels left alone, with a quarter 72% and 95.9%.
SHARE = 0.25


def train_decoder(vae: Vae, seed: int, device: str, report: Callable[[str], None]) -> None:
    """Train the decoder of a trained autoencoder in place, from latents with none to all of the posterior's noise.

    Args:
        vae: Autoencoder from `train_vae`; its encoder is left alone.
        seed: Seed of the pictures and the noise.
        device: Device to train on; the autoencoder is left on the CPU.
        report: Function called with a line of progress every 100 steps.

    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    vae.to(device)
    named = [(n, p) for n, p in vae.named_parameters() if n.startswith(("decoder.", "post_quant_conv."))]
    before = {name: parameter.detach().clone() for name, parameter in named}
    average = {name: parameter.clone() for name, parameter in before.items()}
    inner = [p for n, p in named if p.ndim == 4 and "conv_in" not in n and "conv_out" not in n]
    chosen = {id(p) for p in inner}
    optimizers: list[torch.optim.Optimizer] = [
        Muon(inner, MATRIX_RATE),
        torch.optim.AdamW(
            [p for _, p in named if id(p) not in chosen], OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0
        ),
    ]
    steps = sum(count for _, _, count in PHASES)
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: share_of_rate(step, steps)) for o in optimizers]
    pictures = [random_picture(rng) for _ in range(POOL)]
    start, close = time.monotonic(), []
    for step, (crop, batch) in enumerate((c, b) for c, b, count in PHASES for _ in range(count)):
        crops = [crop_of(pictures[i], crop, rng) for i in rng.integers(POOL, size=batch)]
        image = to_model_range(torch.from_numpy(np.stack(crops)).to(device))
        with autocast(device):
            with torch.no_grad():
                mean, logvar = vae.moments(image)
            noise = torch.exp(0.5 * logvar.clamp(-20, 10)) * torch.randn_like(mean)
            z = mean + torch.rand(batch, 1, 1, 1, device=device) * noise
            drawn = vae.decoder(vae.post_quant_conv(z)).float()
        error = (drawn - image).abs()
        loss = error.mean() + 0.2 * _robust(error).mean()
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for _, p in named], 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        for name, parameter in named:
            average[name].lerp_(parameter.detach(), 1 - EMA_DECAY)
        close.append((error.amax(1) <= CLOSE).float().mean().item())
        if step % 100 == 99:
            seconds = time.monotonic() - start
            report(f"decoder {step + 1}/{steps}  close {np.mean(close[-100:]):.4f}  {seconds:.0f} s")
    for name, parameter in named:
        parameter.data.copy_(torch.lerp(before[name], average[name], SHARE))
    vae.cpu()


def _robust(error: Tensor) -> Tensor:
    """Return e^2 / (e^2 + c^2) (Geman and McClure 1985): nearly a count of the pixels that are not close."""
    return error.square() / (error.square() + CLOSE**2)
