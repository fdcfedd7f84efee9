"""Memory that was freed, given back to the system."""

import ctypes
import sys


def return_freed_memory() -> None:
    """Have the C library return what was freed; does nothing where it has no such call (only glibc has).

    ONNX Runtime's copy of the weights lies on glibc's heap, which keeps it: of 256 MiB none came back when the session
    was freed, and all after this call (0.09 s). Otherwise a stage already freed would count while the next one loads.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(ctypes.c_size_t(0))
