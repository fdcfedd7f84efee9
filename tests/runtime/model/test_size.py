from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.model.size import latent_size, nearest_sides, other_side

OFFICIAL = [(2048, 2048), (2400, 1792), (1792, 2400), (2528, 1696), (1696, 2528), (2752, 1536), (1536, 2752)]


@pytest.mark.parametrize(("width", "height"), [*OFFICIAL, (32, 32), (32, 192), (256, 128)])
def test_valid_sizes_give_rows_and_columns(width: int, height: int) -> None:
    assert latent_size(width, height) == (height // 16, width // 16)


@pytest.mark.parametrize("side", [-32, -1, 0, 1, 16, 31, 33, 48, 1000, 1023, 1025])
def test_nearest_sides_are_the_closest_multiples(side: int) -> None:
    valid = range(32, 4096, 32)
    closest = min(valid, key=lambda candidate: abs(candidate - side))
    assert closest in nearest_sides(side)
    assert all(
        candidate in valid and abs(candidate - side) < 32 + max(0, 32 - side) for candidate in nearest_sides(side)
    )


def test_error_names_the_fault_and_the_nearest_sizes() -> None:
    with pytest.raises(UsageError) as one:
        latent_size(1000, 512)
    assert str(one.value) == (
        "size 1000x512: width 1000 must be a positive multiple of 32; nearest: width 992 or 1024, height 512"
    )
    with pytest.raises(UsageError, match=r"width 0 and height 31 must .* width 32, height 32"):
        latent_size(0, 31)


@pytest.mark.parametrize(("across", "down"), [(3, 2), (192, 128), (4000, 3000), (1, 200), (16384, 100)])
def test_the_other_side_keeps_the_ratio(across: int, down: int) -> None:
    for side in (32, 96, 512, 1024, 2048):
        found = other_side(side, across, down)
        exact = side * down / across
        assert found == min(range(32, 500_000, 32), key=lambda valid: (abs(valid - exact), -valid))


@pytest.mark.parametrize("side", [0, -32, "512", 1.5, None])
def test_a_side_that_is_refused_later_has_some_other_side(side: Any) -> None:
    assert other_side(side, 3, 2) == 32
