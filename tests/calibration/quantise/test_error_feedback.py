"""Error feedback: what it is for, measured on the product itself, and where it changes nothing."""

import pytest
import torch
from torch import Tensor

from qwen_image_engine.calibration.quantise import fp8, int8
from qwen_image_engine.calibration.quantise.error_feedback import ErrorFeedback

ROWS, CHANNELS, OUTPUTS, BLOCK = 4096, 128, 48, 32


def gram(x: Tensor) -> Tensor:
    blocks = x.reshape(len(x), -1, BLOCK).permute(1, 2, 0)
    return blocks @ blocks.transpose(1, 2) / len(x)


def activations(rank: int) -> Tensor:
    """Channels that go together: `rank` directions, and a tenth of noise."""
    generator = torch.Generator().manual_seed(rank)
    mixed = torch.randn(ROWS, rank, generator=generator) @ torch.randn(rank, CHANNELS, generator=generator)
    return mixed / rank**0.5 + 0.1 * torch.randn(ROWS, CHANNELS, generator=generator)


def weight() -> Tensor:
    return torch.randn(OUTPUTS, CHANNELS, generator=torch.Generator().manual_seed(1))


def fp8_values(rows: Tensor, feedback: ErrorFeedback | None) -> Tensor:
    scale = float(rows.abs().max()) / fp8.LARGEST
    return fp8.quantise_rows(rows, scale, feedback).float() * scale


def int8_values(rows: Tensor, feedback: ErrorFeedback | None) -> Tensor:
    codes, scales = int8.quantise_rows(rows, feedback=feedback)
    assert codes.abs().max() <= int8.LEVELS
    return codes.float() * scales[:, None]


QUANTISERS = [fp8_values, int8_values]


@pytest.mark.parametrize("values", QUANTISERS)
def test_the_product_is_nearer_where_channels_go_together(values) -> None:
    x, w = activations(rank=8), weight()
    seen, unseen = x[: ROWS // 2], x[ROWS // 2 :]
    exact = unseen @ w.T
    nearest, fed_back = ((unseen @ values(w, item).T - exact).norm() for item in (None, ErrorFeedback(gram(seen))))
    assert fed_back < 0.6 * nearest


@pytest.mark.parametrize("values", QUANTISERS)
def test_channels_on_their_own_go_to_the_nearest_code(values) -> None:
    scales = torch.rand(CHANNELS // BLOCK, BLOCK, 1, generator=torch.Generator().manual_seed(2)) + 0.1
    w = weight()
    assert torch.equal(values(w, ErrorFeedback(scales * torch.eye(BLOCK))), values(w, None))


@pytest.mark.parametrize("values", QUANTISERS)
def test_blocks_and_channels_that_were_never_used(values) -> None:
    x, w = activations(rank=8), weight()
    x[:, :BLOCK] = 0
    x[:, BLOCK + 3] = 0
    found = values(w, ErrorFeedback(gram(x)))
    nearest = values(w, None)
    assert torch.equal(found[:, :BLOCK], nearest[:, :BLOCK])
    assert torch.equal(found[:, BLOCK + 3], nearest[:, BLOCK + 3])
    assert not torch.equal(found, nearest)


def test_rows_are_on_their_own() -> None:
    feedback, w = ErrorFeedback(gram(activations(rank=8))), weight()
    whole, _ = int8.quantise_rows(w, feedback=feedback)
    parts = [int8.quantise_rows(part, feedback=feedback)[0] for part in (w[:5], w[5:])]
    assert torch.equal(whole, torch.cat(parts))
