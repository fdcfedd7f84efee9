from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.sampling.noise import NoiseDtype, draw_noise

SEEDS = [0, 1, 7, 42, 123456789, 2**31, 2**32 - 1, 2**32, 2**40 + 5, 2**63, 2**64 - 1, -1, -(2**63)]

# torch before 2.13 made the bfloat16 draw from uniforms rounded to bfloat16 (pytorch/pytorch issue 166853).
OLD_BFLOAT16_DRAW = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13)


def torch_noise(shape: tuple[int, ...], seed: int, dtype: NoiseDtype) -> NDArray[np.float32]:
    generator = torch.Generator("cpu").manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=getattr(torch, dtype)).float().numpy()


def bfloat16_steps(a: NDArray[np.float32], b: NDArray[np.float32]) -> int:
    """Count the bfloat16 numbers between the most distant pair; opposite signs count as far apart."""
    bits_a, bits_b = a.view(np.int32) >> 16, b.view(np.int32) >> 16
    return int(np.abs(bits_a - bits_b).max())


@pytest.mark.parametrize("seed", SEEDS)
def test_counts_of_every_remainder(seed: int, within: Callable[[str, float, float], None]) -> None:
    for count in [*range(1, 70), 1000, 4095, 4097]:
        difference = np.abs(draw_noise((count,), seed) - torch_noise((count,), seed, "float32"))
        within("fp32 noise against torch.randn, largest difference", difference.max(), 1e-6)


@pytest.mark.skipif(OLD_BFLOAT16_DRAW, reason="this torch draws bfloat16 noise by another algorithm")
@pytest.mark.parametrize("seed", SEEDS)
def test_bfloat16_counts_of_every_remainder(seed: int) -> None:
    for count in [*range(1, 70), 1000, 4095, 4097]:
        actual = draw_noise((count,), seed, "bfloat16")
        assert bfloat16_steps(actual, torch_noise((count,), seed, "bfloat16")) <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 64, 64, 64), (1, 1, 64, 96, 172), (4, 1, 64, 16, 16), (3, 1, 16, 2, 12), (1, 1, 5, 3, 3), (1, 1, 1, 2, 2)],
    ids=str,
)
def test_latent_shapes(shape: tuple[int, ...], dtype: NoiseDtype) -> None:
    if dtype == "bfloat16" and OLD_BFLOAT16_DRAW:
        pytest.skip("this torch draws bfloat16 noise by another algorithm")
    for seed in range(3):
        actual, expected = draw_noise(shape, seed, dtype), torch_noise(shape, seed, dtype)
        assert actual.dtype == np.float32
        assert actual.shape == shape
        if dtype == "float32":
            np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
        else:
            # torch's float32 polynomials are off by up to 5e-7, which moves a rounding now and then.
            assert bfloat16_steps(actual, expected) <= 1
            assert np.mean(actual != expected) < 1e-4


def test_global_random_state_is_neither_read_nor_moved() -> None:
    before = np.random.get_state(legacy=False)  # noqa: NPY002 - the global state is what must stay untouched
    draw_noise((1, 1, 4, 4, 4), 3)
    after = np.random.get_state(legacy=False)  # noqa: NPY002
    np.testing.assert_equal(after, before)


@pytest.mark.parametrize("seed", [2**64, -(2**63) - 1])
def test_seed_out_of_range(seed: int) -> None:
    with pytest.raises(UsageError, match=str(seed)):
        draw_noise((16,), seed)
