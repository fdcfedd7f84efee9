"""The CUDA driver and the properties of the first device, through the driver's own library, before TensorRT is used.

TensorRT's bindings crash the process if there is no driver. The driver's library returns an error code.
"""

import ctypes
import sys
from dataclasses import dataclass

from qwen_image_engine.engines.core.errors import OutOfDeviceMemory, QwenImageError

LEAST_DRIVER = 13000
"""CUDA 13.0, the version that the libraries of TensorRT 11 and of ONNX Runtime's CUDA backend are built for."""

LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE
_NAME_BYTES = 256


@dataclass(frozen=True)
class DeviceInfo:
    """The properties of the first CUDA device.

    Attributes:
        name: name of the device, "NVIDIA H100 80GB HBM3".
        compute_capability: compute capability of the device, "9.0".
        driver: newest CUDA version that the driver supports, 13000 for 13.0.
        total_bytes: size of the device's memory.
        free_bytes: free memory of the device when it was read.
    """

    name: str
    compute_capability: str
    driver: int
    total_bytes: int
    free_bytes: int


def device_info(library: str = LIBRARY) -> DeviceInfo:
    """Read the properties of the first device. A context is open for a moment, because free memory needs one.

    Raises:
        QwenImageError: there is no driver, this process sees no device, the driver is older than CUDA 13, or a call of
            the driver fails.
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        raise QwenImageError(
            f"no CUDA driver: {library} cannot be loaded ({error}); a machine with an NVIDIA GPU needs driver 580 or "
            "newer, and a container has to be started with the GPU (docker run --gpus all)"
        ) from None
    driver = ctypes.c_int()
    call(cuda, "cuDriverGetVersion", ctypes.byref(driver))
    if driver.value < LEAST_DRIVER:
        raise QwenImageError(
            f"the CUDA driver serves CUDA {version_text(driver.value)}, and engines on a GPU (TensorRT 11, ONNX "
            f"Runtime) need {version_text(LEAST_DRIVER)}; install NVIDIA's driver 580 or newer"
        )
    call(cuda, "cuInit", ctypes.c_uint(0))
    count = ctypes.c_int()
    call(cuda, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        raise _no_device()
    device = ctypes.c_int()
    call(cuda, "cuDeviceGet", ctypes.byref(device), ctypes.c_int(0))
    name = ctypes.create_string_buffer(_NAME_BYTES)
    call(cuda, "cuDeviceGetName", name, ctypes.c_int(_NAME_BYTES), device)
    major, minor = ctypes.c_int(), ctypes.c_int()
    for value, attribute in ((major, _CAPABILITY_MAJOR), (minor, _CAPABILITY_MINOR)):
        call(cuda, "cuDeviceGetAttribute", ctypes.byref(value), ctypes.c_int(attribute), device)
    free, total = _memory(cuda, device)
    return DeviceInfo(
        name=name.value.decode(errors="replace"),
        compute_capability=f"{major.value}.{minor.value}",
        driver=driver.value,
        total_bytes=total,
        free_bytes=free,
    )


def version_text(version: int) -> str:
    """Return CUDA's number of a version as text: 13020 is "13.2"."""
    return f"{version // 1000}.{version % 1000 // 10}"


def _memory(cuda: ctypes.CDLL, device: ctypes.c_int) -> tuple[int, int]:
    """Return the free and the total bytes of the device."""
    context, free, total = ctypes.c_void_p(), ctypes.c_size_t(), ctypes.c_size_t()
    call(cuda, "cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    try:
        call(cuda, "cuCtxPushCurrent_v2", context)
        try:
            call(cuda, "cuMemGetInfo_v2", ctypes.byref(free), ctypes.byref(total))
        finally:
            cuda.cuCtxPopCurrent_v2(ctypes.byref(context))
    finally:
        cuda.cuDevicePrimaryCtxRelease_v2(device)
    return free.value, total.value


def call(cuda: ctypes.CDLL, function: str, *arguments: object) -> None:
    """Call a function of the driver.

    Raises:
        OutOfDeviceMemory: the driver returns the error that memory ran out.
        QwenImageError: the driver returns another error, or there is no device.
    """
    code: int = getattr(cuda, function)(*arguments)
    if code == _NO_DEVICE:
        raise _no_device()
    if code:
        text = ctypes.c_char_p()
        known = cuda.cuGetErrorString(ctypes.c_int(code), ctypes.byref(text)) == 0 and text.value
        meaning = text.value.decode(errors="replace") if known and text.value else "an unknown error"
        said = f"the CUDA driver answers {function} with error {code}, {meaning}"
        if code == _OUT_OF_MEMORY:
            raise OutOfDeviceMemory(f"{said}; free some of the GPU's memory, or run with --memory sequential")
        raise QwenImageError(f"{said}; see whether nvidia-smi lists the GPU")


def _no_device() -> QwenImageError:
    return QwenImageError(
        "the CUDA driver is there and finds no GPU; see whether nvidia-smi lists one and whether CUDA_VISIBLE_DEVICES "
        "hides it"
    )
