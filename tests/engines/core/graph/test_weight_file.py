"""Places of weights against the header of their file: whole tensors and whole rows are held, nothing else."""

from dataclasses import replace

import pytest

from qwen_image_engine.engines.core.graph.weight_file import StoredTensor, WeightFile

FIRST = StoredTensor("first", "BF16", (6, 2), 100, 24)
SECOND = StoredTensor("second", "F32", (), 124, 4)
FILE = WeightFile([SECOND, FIRST])


@pytest.mark.parametrize("tensor", [FIRST, SECOND, replace(FIRST, name="of a fused linear")])
def test_a_tensor_of_the_file_is_held(tensor: StoredTensor) -> None:
    assert FILE.holds(tensor)


def test_rows_of_a_tensor_are_held() -> None:
    assert FILE.holds(StoredTensor("to_k.weight", "BF16", (2, 2), 108, 8))
    assert FILE.holds(StoredTensor("to_v.weight", "BF16", (4, 2), 108, 16))


@pytest.mark.parametrize(
    "tensor",
    [
        replace(FIRST, offset=104),
        replace(FIRST, dtype="F16"),
        replace(FIRST, shape=(2, 6)),
        replace(FIRST, shape=(12,)),
        replace(FIRST, name="second"),
        replace(SECOND, offset=128),
        replace(SECOND, offset=96),
        StoredTensor("half a row", "BF16", (2, 2), 106, 8),
        StoredTensor("beyond", "BF16", (4, 2), 116, 16),
        StoredTensor("", "F32", (1,), 124, 4),
    ],
)
def test_other_places_are_not_held(tensor: StoredTensor) -> None:
    assert not FILE.holds(tensor)


def test_bytes_between_tensors_are_of_none() -> None:
    file = WeightFile([replace(SECOND, offset=132), FIRST])
    assert file.at(123) == FIRST
    assert file.at(124) is None
    assert file.at(136) is None
