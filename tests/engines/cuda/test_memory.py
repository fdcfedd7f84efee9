"""A device's memory through the driver's functions, played by a small library in libcuda's place."""

import ctypes
import gc
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.engines.core.device_array import DeviceArray, repeat
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.memory import CudaContext, CudaMemory

# Signatures of NVIDIA's driver API. Addresses are 64 bits wide and none of the host's: read as 32, or used without a
# context, they fail. At most 1 MB is lent.
LIBRARY = r"""
#include <stdlib.h>
#include <string.h>
#include <stddef.h>
#define BASE 0x7f0000000000ull
static char memory[1 << 20];
static size_t used, freed;
static int depth, pending;
typedef unsigned long long address;
static int at(address a, size_t n) { return depth && a >= BASE && a - BASE + n <= sizeof memory; }
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)0x1234567890; return device - 7; }
int cuCtxPushCurrent_v2(void *context) { depth += context == (void *)0x1234567890; return 0; }
int cuCtxPopCurrent_v2(void **context) { depth--; return 0; }
int cuMemAlloc_v2(address *a, size_t n) {
  if (!depth) return 201;
  if (used + n > sizeof memory) return 2;
  *a = BASE + used; used += n; return 0;
}
int cuMemFree_v2(address a) { freed += 1; return !at(a, 0); }
int cuMemcpyDtoD_v2(address to, address from, size_t n) {
  if (!at(to, n) || !at(from, n)) return 1;
  memmove(memory + (to - BASE), memory + (from - BASE), n); pending = 1; return 0;
}
int cuCtxSynchronize(void) { pending = 0; return !depth; }
int cuMemcpyDtoH_v2(void *to, address from, size_t n) {
  if (!at(from, n) || pending) return 1;
  memcpy(to, memory + (from - BASE), n); return 0;
}
int cuMemGetInfo_v2(size_t *available, size_t *total) {
  *available = sizeof memory - used; *total = sizeof memory; return !depth;
}
int cuGetErrorString(int code, const char **text) { *text = "an error"; return 0; }
size_t freed_blocks(void) { return freed; }
void fill(size_t start, const void *from, size_t n) { memcpy(memory + start, from, n); }
"""


@pytest.fixture
def context(tmp_path: Path) -> CudaContext:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source, library = tmp_path / "cuda.c", tmp_path / "libcuda.so"
    source.write_text(LIBRARY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
    return CudaContext.open(str(library))


def test_arrays_are_copied_repeated_and_read(context: CudaContext) -> None:
    values = np.random.default_rng(0).standard_normal((1, 5, 2, 4)).astype(np.float32)
    first = DeviceArray.empty(CudaMemory(context, 0), values.shape, "float32")
    context.cuda.fill(ctypes.c_size_t(0), ctypes.c_void_p(values.ctypes.data), ctypes.c_size_t(values.nbytes))
    np.testing.assert_array_equal(first.numpy(), values)
    np.testing.assert_array_equal(first[:, 1:4].numpy(), values[:, 1:4])
    larger = DeviceArray.empty(first.memory, (1, 9, 2, 4), "float32")
    larger[:, 3:8] = first
    np.testing.assert_array_equal(larger[:, 3:8].numpy(), values)
    twice = repeat(first, 2)
    assert isinstance(twice, DeviceArray)
    np.testing.assert_array_equal(twice.numpy(), np.repeat(values, 2, axis=0))


def test_memory_is_freed_when_nothing_refers_to_it(context: CudaContext) -> None:
    nothing = CudaMemory(context, 0)
    array = DeviceArray.empty(nothing, (1, 2, 1, 1), "bfloat16")
    view = array[:, :1]
    del array
    gc.collect()
    assert context.cuda.freed_blocks() == 0
    del view
    gc.collect()
    assert context.cuda.freed_blocks() == 1
    del nothing
    gc.collect()
    assert context.cuda.freed_blocks() == 1


def test_too_little_memory_is_told(context: CudaContext) -> None:
    with pytest.raises(
        QwenImageError,
        match=r"keys and values take 1048577 bytes and 1048576 bytes of .* free: 1 are missing; run with",
    ):
        CudaMemory(context, (1 << 20) + 1)


def test_other_errors_keep_the_drivers_words(context: CudaContext) -> None:
    memory = CudaMemory(context, 16)
    with pytest.raises(QwenImageError, match="cuMemcpyDtoH_v2 with error 1, an error"):
        memory.read(1 << 20, 16)
