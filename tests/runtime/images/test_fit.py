import random
from typing import Any

import pytest
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import calculate_dimensions
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.fit import reference_size
from qwen_image_engine.runtime.model.size import latent_size

BOUNDS: dict[str, Any] = {"name": "reference image a.png", "min_pixels": 65536, "max_pixels": 16777216}
SIZES = [(640, 480), (480, 640), (1024, 1024), (3000, 500), (513, 1999), (33, 32), (16384, 8192), (100, 9999)]


@pytest.mark.parametrize("resolution", [288, 512, 1000, 1024, 2048])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_sizes_equal_diffusers(width: int, height: int, resolution: int) -> None:
    *expected, _ = calculate_dimensions(resolution * resolution, width / height)
    if max(expected) <= 200 * min(expected) and 65536 <= expected[0] * expected[1] <= 16777216:
        found = reference_size(width, height, resolution, **BOUNDS)
        assert found == tuple(expected)
        latent_size(*found)


def test_what_is_accepted_the_processor_leaves_alone() -> None:
    rng = random.Random(0)
    accepted = 0
    for _ in range(3000):
        width, height = rng.randrange(32, 2000), rng.randrange(32, 2000)
        resolution = rng.choice((32, 100, 250, 256, 260, 1024, 4000, 4096))
        wide, high, _ = calculate_dimensions(resolution * resolution, width / height)
        try:
            unchanged = smart_resize(high, wide, 32, 65536, 16777216) == (high, wide)
        except (ValueError, ZeroDivisionError):
            unchanged = False
        if unchanged:
            assert reference_size(width, height, resolution, **BOUNDS) == (wide, high)
            accepted += 1
        else:
            with pytest.raises(UsageError) as raised:
                reference_size(width, height, resolution, **BOUNDS)
            advised = int(str(raised.value).rpartition(" ")[2])
            reference_size(width, height, advised, **BOUNDS)
    assert 1000 < accepted < 2900


def test_errors_name_image_size_bounds_and_what_works() -> None:
    with pytest.raises(UsageError) as small:
        reference_size(640, 480, 128, **BOUNDS)
    assert str(small.value) == (
        "reference image a.png is 160x96 at the reference resolution 128: 15360 pixels, and the text encoder reads "
        "65536 to 16777216; use --reference-resolution 288"
    )
    with pytest.raises(UsageError, match=r"is 4128x4064 .*: 16776192 pixels.*use --reference-resolution 3936$"):
        reference_size(1010, 1000, 4096, **{**BOUNDS, "max_pixels": 2**24 - 2**20})
    with pytest.raises(UsageError, match=r"is 1824x0 .* a side is under 32 pixels, .* use --reference-resolution \d+$"):
        reference_size(6400, 32, 128, **BOUNDS)
    with pytest.raises(UsageError, match=r"is 14496x64 .*: longer than 200:1; use --reference-resolution \d+$"):
        reference_size(6400, 32, 1024, **BOUNDS)
    with pytest.raises(UsageError, match=r"; crop it to a squarer shape$"):
        reference_size(640, 480, 1024, name="a", min_pixels=10, max_pixels=20)


@pytest.mark.parametrize("resolution", [0, -32, 31, 4097, 1024.0, "1024", None, float("nan"), True])
def test_resolutions_that_are_none(resolution: Any) -> None:
    with pytest.raises(UsageError, match=r"^the reference resolution is .*, expected a whole number .* 32 to 4096$"):
        reference_size(640, 480, resolution, **BOUNDS)
