"""The distance of two pictures: against torch, by hand, and by what FLIP promises."""

import math
import sys

import numpy as np
import pytest
import torch

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.verify.pictures.distance import (
    CEILING,
    Distance,
    Figures,
    check_flip,
    distance,
    flip,
    over_white,
    psnr,
)

LATENTS = np.ones((4, 2), np.float32)


def noise(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 48, 4)).astype(np.uint8)


def test_psnr_against_torch() -> None:
    """Composited and compared by torch, in another order of operations."""
    own, other = noise(1), noise(2)
    tensors = [torch.from_numpy(picture).double() / 255 for picture in (own, other)]
    colours = [torch.lerp(torch.ones(3).double(), item[..., :3], item[..., 3:]) for item in tensors]
    found = distance((own, LATENTS), (other, LATENTS))
    assert found.psnr_rgb == pytest.approx(-10 * torch.log10(torch.nn.functional.mse_loss(*colours)).item())
    alphas = [item[..., 3] for item in tensors]
    assert found.psnr_alpha == pytest.approx(-10 * torch.log10(torch.nn.functional.mse_loss(*alphas)).item())


def test_psnr_by_hand() -> None:
    white = np.ones((8, 8, 3))
    assert psnr(white - 1 / 255, white) == pytest.approx(20 * math.log10(255))
    assert psnr(np.zeros((8, 8, 3)), white) == 0
    assert psnr(white, white) == CEILING
    assert psnr(white - 1e-9, white) == CEILING


def test_alpha_is_apart() -> None:
    """White stays white however clear it is; black becomes grey."""
    white = np.full((16, 16, 4), 255, np.uint8)
    clear = white.copy()
    clear[..., 3] = 204
    found = distance((clear, LATENTS), (white, LATENTS))
    assert found.psnr_rgb == CEILING
    assert found.flip == 0
    assert found.psnr_alpha == pytest.approx(-20 * math.log10(1 - 204 / 255))
    black = np.zeros((2, 2, 4), np.uint8)
    black[..., 3] = 204
    np.testing.assert_allclose(over_white(black), 0.2)


def test_flip_of_equal_and_of_unequal_pictures() -> None:
    picture = over_white(noise(1))
    assert flip(picture, picture) == 0
    near, far = flip(picture * 0.98, picture), flip(picture * 0.5, picture)
    assert 0 < near < far < 1
    black, white = np.zeros((64, 64, 3)), np.ones((64, 64, 3))
    assert 0.95 < flip(black, white) < 1


def test_latents_are_relative() -> None:
    picture = noise(1)
    assert distance((picture, 1.5 * LATENTS), (picture, LATENTS)).latents == pytest.approx(0.5)


def test_figures_of_several() -> None:
    found = Figures.of([Distance(40, 50, 0.1, 0.2), Distance(60, 100, 0.3, 0.4)])
    assert (found.psnr_rgb, found.psnr_rgb_worst, found.psnr_alpha) == (50, 40, 75)
    assert (found.flip, found.flip_worst) == (pytest.approx(0.2), 0.3)
    assert found.latents == pytest.approx(0.3)


def test_flip_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    check_flip()
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    with pytest.raises(QwenImageError, match=r"flip-evaluator is not installed.*qwen-image-engine\[report\]"):
        check_flip()
