import ml_dtypes
import numpy as np
import pytest

from qwen_image_engine.engines.core.bfloat16 import from_bfloat16, to_bfloat16
from qwen_image_engine.engines.core.contract import CODES, Contract, TensorSpec
from qwen_image_engine.engines.core.contract_check import check_inputs
from qwen_image_engine.engines.core.device_array import (
    DeviceArray,
    Values,
    dtype_name,
    on_host,
    repeat,
    stored,
    with_room,
)
from qwen_image_engine.engines.core.errors import QwenImageError
from tests.support.numpy_memory import NumpyMemory, on_device

HOST = np.random.default_rng(0).standard_normal((1, 7, 2, 3), np.float32)


def test_bfloat16_rounds_as_ml_dtypes_does() -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32)
    special = np.array([0x7F7FFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0x00000001, 0x3F808000, 0x3F818000], np.uint32)
    values = np.concatenate([bits, special]).view(np.float32)
    with np.errstate(invalid="ignore"):
        expected = values.astype(ml_dtypes.bfloat16)
    found = from_bfloat16(to_bfloat16(values))
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_device_array_is_used_as_an_array_of_numpy_is(dtype: str) -> None:
    values = on_device(HOST, dtype)
    host = values.numpy()
    assert (values.ndim, values.shape, dtype_name(values)) == (4, HOST.shape, dtype)
    assert values.nbytes == HOST.size * (4 if dtype == "float32" else 2)
    view = values[:, 2:5]
    assert view.address == values.address + 2 * values.nbytes // 7
    np.testing.assert_array_equal(view.numpy(), host[:, 2:5])
    np.testing.assert_array_equal(view[:, 1:].numpy(), host[:, 3:5])
    values[:, 4:7] = values[:, 0:3]
    np.testing.assert_array_equal(values.numpy(), np.concatenate([host[:, :4], host[:, :3]], 1))


def test_room_and_repeats_are_of_the_same_kind() -> None:
    def check(values: Values) -> None:
        roomy, batch = with_room(values, 9), repeat(values, 3)
        assert type(roomy) is type(batch) is type(values)
        assert roomy.shape == (1, 9, 2, 3)
        np.testing.assert_array_equal(on_host(roomy)[:, :7], HOST)
        np.testing.assert_array_equal(on_host(batch), np.repeat(HOST, 3, 0))
        assert repeat(values, 1) is values

    check(HOST)
    check(on_device(HOST))
    np.testing.assert_array_equal(repeat(on_device(HOST)[:, 2:4], 2).shape, (2, 2, 2, 3))
    np.testing.assert_array_equal(on_host(repeat(on_device(HOST)[:, 2:4], 2)), np.repeat(HOST[:, 2:4], 2, 0))


def test_codes_of_fp8_are_bytes_on_the_host() -> None:
    codes = HOST.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    device = DeviceArray.empty(NumpyMemory(0), codes.shape, CODES)
    assert isinstance(device.memory, NumpyMemory)
    device.memory.bytes[:] = stored(codes, CODES).ravel()
    assert (device.nbytes, dtype_name(device)) == (codes.size, "float8_e4m3fn")
    np.testing.assert_array_equal(device.numpy(), codes)
    np.testing.assert_array_equal(on_host(with_room(device, 9))[:, :7], codes)
    contract = Contract("step", "", (TensorSpec("key_0", ("batch", "prefix", 2, 3), CODES, ""),), ())
    for given in (device, codes):
        assert check_inputs(contract, {"key_0": given}) == {"batch": 1, "prefix": 7}
    for other in (HOST, on_device(HOST, "bfloat16"), codes.view(np.int8)):
        with pytest.raises(QwenImageError, match=r"input key_0 is .*, expected float8_e4m3fn"):
            check_inputs(contract, {"key_0": other})


def test_a_copy_of_another_shape_or_dtype_is_refused() -> None:
    values = on_device(HOST)
    with pytest.raises(AssertionError):
        values[:, 0:3] = values[:, 0:2]
    with pytest.raises(AssertionError):
        values[:, 0:7] = on_device(HOST, "bfloat16")


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        (on_device(HOST, "bfloat16"), True),
        (HOST, True),  # which engines round
        (on_device(HOST), False),
        (HOST.astype(np.float16), False),
        (on_device(HOST[:, :, :1], "bfloat16"), False),
    ],
)
def test_the_contract_is_compared_with_device_arrays_too(given: Values, fits: bool) -> None:
    contract = Contract("step", "", (TensorSpec("key_0", ("batch", "prefix", 2, 3), "bfloat16", ""),), ())
    if fits:
        assert check_inputs(contract, {"key_0": given}) == {"batch": 1, "prefix": 7}
    else:
        with pytest.raises(QwenImageError, match=r"input key_0 is .*, expected bfloat16"):
            check_inputs(contract, {"key_0": given})


def test_uninitialised_memory_of_the_fake_device_is_seen() -> None:
    values = on_device(HOST)
    assert np.isnan(DeviceArray.empty(values.memory, (2,), "bfloat16").numpy()).all()
