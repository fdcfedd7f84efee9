"""The steps after which partial pictures are sent."""

import pytest

from qwen_image_engine.runtime.serve.job import partial_steps


@pytest.mark.parametrize("count", range(4))
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 7, 20, 40, 1000])
def test_as_many_as_asked(steps: int, count: int) -> None:
    found = partial_steps(steps, count)
    assert len(set(found)) == len(found) == min(steps, count)
    assert list(found) == sorted(found)
    assert all(0 <= index < steps for index in found)
    if steps > count:
        assert steps - 1 not in found  # the last is the picture itself


def test_evenly() -> None:
    assert partial_steps(20, 3) == (4, 9, 14)
    assert partial_steps(40, 1) == (19,)
    assert partial_steps(3, 3) == (0, 1, 2)
