"""Facts of the machine that decide what fits and what is fast. A fact is None if the system does not report it."""

import os
import platform
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Self

CPU_FLAGS: Mapping[str, str] = {
    "avx2": "fp32, half width",
    "avx512f": "fp32, full width",
    "avx_vnni": "int8, half width",
    "avx512_vnni": "int8, full width",
    "avx512_bf16": "bf16",
    "amx_tile": "needed by the next two",
    "amx_bf16": "bf16, several times faster",
    "amx_int8": "int8, several times faster",
}
"""CPU features of the engines' fast paths, by the kernel's name of the flag."""

PACKAGES = (
    "qwen-image-engine",
    "numpy",
    "tokenizers",
    "pillow",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "torch",
    "onnx",
    "onnx-ir",
    "onnxscript",
    "safetensors",
    "filelock",
    "transformers",
    "diffusers",
)


@dataclass(frozen=True)
class Machine:
    """The facts of this machine.

    Attributes:
        python: version of Python.
        system: kernel and architecture.
        cpu: name of the processor.
        cores: number of cores that this process may use.
        cpu_flags: whether the processor has each flag of `CPU_FLAGS`; None if the system does not report them.
        memory_bytes: memory of the machine or of this container, whichever is less; None if the system does not report
            it.
        free_memory_bytes: memory that a new process could take now; None if the system does not report it.
    """

    python: str
    system: str
    cpu: str
    cores: int
    cpu_flags: Mapping[str, bool] | None
    memory_bytes: int | None
    free_memory_bytes: int | None

    @classmethod
    def here(cls) -> Self:
        """Read the facts of this machine."""
        flags = _proc("/proc/cpuinfo", "flags")
        total, free = _memory_bytes()
        limit = _number("/sys/fs/cgroup/memory.max")
        used = _number("/sys/fs/cgroup/memory.current")
        return cls(
            python=platform.python_version(),
            system=f"{platform.system()} {platform.machine()}",
            cpu=_proc("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
            cores=usable_cores(),
            cpu_flags=None if flags is None else {name: name in flags.split() for name in CPU_FLAGS},
            memory_bytes=_least(total, limit),
            free_memory_bytes=_least(free, None if limit is None or used is None else limit - used),
        )


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def reachable_memory_bytes() -> int | None:
    """Return the most bytes that this process could still take, with caches emptied and swap filled.

    This is an upper bound: work that needs more is sure to fail. Only Linux reports one: macOS compresses memory and
    makes swap files as it needs them, and Windows enlarges its paging file.

    Returns:
        Bytes; None if the system does not report them.
    """
    free = _kibibytes(_proc("/proc/meminfo", "MemAvailable"))
    swap = _kibibytes(_proc("/proc/meminfo", "SwapFree")) or 0
    limit, taken = _number("/sys/fs/cgroup/memory.max"), _cgroup_anonymous_bytes()
    least = _least(free, None if limit is None or taken is None else limit - taken)
    return None if least is None else least + swap


def int8_expectation(flags: Mapping[str, bool] | None) -> str:
    """Describe the benefit of an int8 bundle on a processor with `flags` (of `CPU_FLAGS`).

    The times of a step were measured with 2 blocks at the released width on Zen 4 and Zen 5, which have VNNI and no
    AMX, and are relative to torch in fp32: benchmarks/results/speed*.json, docs/performance.md.
    """
    memory = "linears take a quarter of fp32's memory"
    if flags is None:
        return "not known what this processor multiplies integers with"
    if flags["amx_int8"]:
        return (
            f"AMX: not measured yet; with VNNI alone a step takes a third to an eighth of torch's fp32 time; {memory}"
        )
    if flags["avx512_vnni"] or flags["avx_vnni"]:
        return f"VNNI: a step takes a third to an eighth of torch's fp32 time; {memory}"
    return (
        f"neither VNNI nor AMX: the same numbers; in ONNX Runtime {memory}, and their products are of a slower kind "
        "that does not saturate, not timed yet; OpenVINO multiplies in fp32"
    )


def package_versions() -> dict[str, str | None]:
    """Return the installed version of every package of `PACKAGES`; None if it is not installed."""
    return {name: _version(name) for name in PACKAGES}


@cache  # parsing the metadata of all of `PACKAGES` takes tens of milliseconds
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory_bytes() -> tuple[int | None, int | None]:
    """Return the machine's memory and the free part of it, on Linux from proc(5), elsewhere from psutil if it is there.

    The runtime alone does without psutil.
    """
    total, free = _kibibytes(_proc("/proc/meminfo", "MemTotal")), _kibibytes(_proc("/proc/meminfo", "MemAvailable"))
    if total is None:
        with suppress(ImportError):
            import psutil

            memory = psutil.virtual_memory()
            return memory.total, memory.available
    return total, free


def _proc(file: str, key: str) -> str | None:
    try:
        lines = Path(file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    pairs = (line.partition(":") for line in lines)
    return next((value.strip() for name, _, value in pairs if name.strip() == key), None)


def _kibibytes(text: str | None) -> int | None:
    return int(text.split()[0]) * 1024 if text else None


def _number(file: str) -> int | None:
    try:
        text = Path(file).read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" is no limit


def _cgroup_anonymous_bytes() -> int | None:
    """Return the bytes that the container's processes allocated. memory.current would count file caches too."""
    try:
        lines = Path("/sys/fs/cgroup/memory.stat").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("anon ")), None)


def _least(*values: int | None) -> int | None:
    return min((value for value in values if value is not None), default=None)
