import pytest

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory
from qwen_image_engine.engines.tensorrt.scratch import Scratch
from tests.support.numpy_memory import NumpyMemory


def test_one_buffer_grows_to_the_largest_and_goes_with_its_last_user() -> None:
    sizes: list[int] = []

    def allocate(nbytes: int) -> NumpyMemory:
        sizes.append(nbytes)
        return NumpyMemory(nbytes)

    scratch, first, second = Scratch(allocate), object(), object()
    address = scratch.address(first, 100)
    assert scratch.address(second, 60) == scratch.address(first, 100) == address
    scratch.address(second, 200)
    scratch.address(first, 100)
    assert sizes == [100, 200]
    scratch.release(second)
    scratch.address(first, 150)
    assert sizes == [100, 200]
    scratch.release(first)
    scratch.address(first, 50)
    assert sizes == [100, 200, 50]


def test_what_cannot_grow_is_asked_for_again() -> None:
    room = 100

    def allocate(nbytes: int) -> NumpyMemory:
        if nbytes > room:
            raise OutOfDeviceMemory("none")
        return NumpyMemory(nbytes)

    scratch = Scratch(allocate)
    scratch.address(scratch, 100)
    with pytest.raises(OutOfDeviceMemory):
        scratch.address(scratch, 200)
    assert scratch.address(scratch, 100)
