"""The file with the kernels that TensorRT for RTX compiled on this machine for a plan.

It lies beside the plan, under a name of its own for each plan, card, driver and version, and the manifest does not list
it. TensorRT for RTX checks all of these itself when it takes the contents, and refuses those of another system.
"""

import re
import secrets
from pathlib import Path

from qwen_image_engine.engines.core.files import is_stream, read_regular, whole_file
from qwen_image_engine.engines.cuda.driver import DeviceInfo, version_text

SUFFIX = ".jit"

MOST_BYTES = 1 << 30
"""Largest file that is read or written."""

_LONGEST_NAME = 64


def jit_cache_path(plan: Path, device: DeviceInfo, version: str) -> Path:
    """Return the path of the kernels of a plan, for a device and a version of TensorRT for RTX."""
    card = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-")[:_LONGEST_NAME]
    return plan.with_name(f"{plan.stem}.{card}-{version_text(device.driver)}-{version}{SUFFIX}")


def read_kernels(path: Path) -> bytes:
    """Return the kernels in a file; empty if there is none. A link is no file of ours: it is not followed.

    Raises:
        OSError: the file cannot be read, is not regular, or is larger than `MOST_BYTES`.
    """
    if path.is_symlink():
        return b""
    try:
        return read_regular(path, MOST_BYTES)
    except FileNotFoundError:
        return b""


def write_kernels(path: Path, kernels: bytes) -> None:
    """Write kernels to a file, which is whole or as it was before at any time. A link or pipe there is removed.

    Raises:
        OSError: the file cannot be written.
    """
    if path.is_symlink() or is_stream(path):
        path.unlink()
    with whole_file(path, temporary=path.with_name(f".{secrets.token_hex(8)}.partial")) as file:
        file.write(kernels)
