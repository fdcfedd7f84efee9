"""The driver's answers in words, asked of small libraries in libcuda's place."""

import shutil
import subprocess
from pathlib import Path

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.driver import DeviceInfo, device_info, version_text

# The functions and their arguments are those of NVIDIA's driver API.
LIBRARY = r"""
#include <string.h>
#include <stddef.h>
int cuDriverGetVersion(int *version) { *version = DRIVER; return 0; }
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "A GPU", length); return device - 7; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 9 : which - 75; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(size_t)0x123456789abcdef0; return 0; }
int cuCtxPushCurrent_v2(void *context) { return context != (void *)(size_t)0x123456789abcdef0; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { *available = 60ull << 30; *total = 80ull << 30; return MEMORY; }
int cuCtxPopCurrent_v2(void **context) { return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuGetErrorString(int code, const char **text) { *text = "unspecified launch failure"; return 0; }
"""


def driver(folder: Path, driver: int = 13000, init: int = 0, count: int = 1, memory: int = 0) -> str:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = folder / "cuda.c", folder / "libcuda.so"
    source.write_text(LIBRARY)
    values = {"DRIVER": driver, "INIT": init, "COUNT": count, "MEMORY": memory}
    flags = [f"-D{name}={value}" for name, value in values.items()]
    subprocess.run([compiler, "-shared", "-fPIC", *flags, "-o", library, source], check=True)
    return str(library)


@pytest.mark.process
def test_facts_of_the_first_device(tmp_path: Path) -> None:
    expected = DeviceInfo("A GPU", "9.1", 13000, total_bytes=80 << 30, free_bytes=60 << 30)
    assert device_info(driver(tmp_path)) == expected


def test_no_driver() -> None:
    with pytest.raises(QwenImageError, match=r"no CUDA driver: libabsent\.so cannot be loaded .* driver 580"):
        device_info("libabsent.so")


@pytest.mark.process
@pytest.mark.parametrize(
    ("answers", "words"),
    [
        ({"driver": 12080}, r"serves CUDA 12\.8, .*TensorRT 11, ONNX Runtime\) need 13\.0; install"),
        ({"count": 0}, "finds no GPU"),
        ({"init": 100}, "finds no GPU"),
        ({"init": 803}, "answers cuInit with error 803, unspecified launch failure"),
        ({"memory": 2}, "answers cuMemGetInfo_v2 with error 2"),
    ],
)
def test_refusals_in_words(tmp_path: Path, answers: dict[str, int], words: str) -> None:
    with pytest.raises(QwenImageError, match=words):
        device_info(driver(tmp_path, **answers))


def test_versions_as_one_writes_them() -> None:
    assert [version_text(version) for version in (13000, 13020, 12080)] == ["13.0", "13.2", "12.8"]
