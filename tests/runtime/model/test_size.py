import pytest

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.model.size import latent_size, nearest_sides

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
