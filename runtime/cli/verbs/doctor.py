"""`qwen-image doctor`: the packages and devices of this machine, and what is missing for which verb or engine."""

import argparse
import importlib
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from qwen_image_engine.engines.backends import (
    BACKENDS,
    ENGINES,
    LINUX,
    MACOS,
    SYSTEMS,
    WINDOWS,
    Installation,
    available,
    backends_on,
)
from qwen_image_engine.engines.core.errors import QwenImageError, one_line, pass_interruption
from qwen_image_engine.engines.core.versions import UnsupportedVersion, unsupported_version
from qwen_image_engine.engines.onnxruntime.package import TELEMETRY_SWITCH
from qwen_image_engine.runtime.cli.shared.extras import EXPORT_PACKAGES, INSTALL, export_packages, serve_packages
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.system.machine import CPU_FLAGS, Machine, int8_expectation, package_versions
from qwen_image_engine.runtime.system.text import size_text, table

SUMMARY = "what this machine has, and what is missing for what"
_CHECKED = {
    LINUX: "every test runs there, on x86_64",
    MACOS: "never run there; the tests on Linux take POSIX-only modules away",
    WINDOWS: "never run there; the tests on Linux take POSIX-only modules away",
}
_FITTING = "install torch and torchvision of one build (both for CPUs, or for one CUDA)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flag."""
    parser.add_argument(
        "--engine", choices=ENGINES, help="tell of this engine alone; exit code 1 if it cannot run here"
    )


def execute(options: argparse.Namespace) -> VerbResult:
    """Inspect the machine. The exit code is 1 if no engine can run a bundle, or the one that is asked for cannot."""

    machine, packages, engines = Machine.here(), package_versions(), available()
    if options.engine is not None:  # engines of one package have one row
        package = BACKENDS[options.engine].package
        engines = tuple(item for item in engines if BACKENDS[item.name].package == package)
    folder = Path.cwd()
    free_bytes = shutil.disk_usage(folder).free
    cache, cached = _hub_cache()
    fault = _export_fault(packages)
    no_server = _serve_fault()
    diffusers = _diffusers_fault()

    rows = [("python", f"{machine.python} on {machine.system}")]
    unsupported = {name: str(wrong) for name, found in packages.items() if (wrong := _version_fault(name, found))}
    installed = {name: found for name, found in packages.items() if found}
    rows += [(name, f"✗ {unsupported[name]}" if name in unsupported else found) for name, found in installed.items()]
    rows += [(f"engine {item.name}", _engine_text(item)) for item in engines]
    rows.append(("plan, export, calibrate, verify", f"✗ {fault}" if fault else "✓"))
    rows.append(("serve", f"✗ {no_server}" if no_server else "✓"))
    if diffusers is not None:
        rows.append(("diffusers pipelines", f"✗ {diffusers}" if diffusers else "✓"))
    rows.append(("cpu", f"{machine.cpu}, {machine.cores} cores for this process"))
    rows += [
        (f"  {name}", f"{'✓' if found else '–'} {CPU_FLAGS[name]}") for name, found in (machine.cpu_flags or {}).items()
    ]
    rows.append(("int8 bundles", int8_expectation(machine.cpu_flags)))
    if machine.memory_bytes is not None and machine.free_memory_bytes is not None:
        rows.append(("memory", f"{size_text(machine.memory_bytes)}, {size_text(machine.free_memory_bytes)} free"))
    rows.append(("disk", f"{size_text(free_bytes)} free in {folder}"))
    rows.append(("hub cache", f"{cache}: {', '.join(cached) or 'no checkpoints'}" if cache else "✗ no home folder"))
    rows.append(("telemetry", _telemetry()))
    rows += [(f"on {system}", _system_text(system)) for system in SYSTEMS]
    document = {
        "machine": asdict(machine),
        "int8": int8_expectation(machine.cpu_flags),
        "packages": packages,
        "unsupported": unsupported,
        "engines": [asdict(item) for item in engines],
        "export": {"ready": fault is None, "missing": fault},
        "serve": {"ready": no_server is None, "missing": no_server},
        "diffusers": {"ready": diffusers == "", "fault": diffusers or None},
        "disk": {"folder": str(folder), "free_bytes": free_bytes},
        "hub_cache": {"folder": None if cache is None else str(cache), "checkpoints": cached},
        "telemetry": _telemetry(),
        "systems": {
            system: {"checked": _CHECKED[system], "engines": backends_on(system), "verbs": _verbs_on(system)}
            for system in SYSTEMS
        },
    }
    return VerbResult(document, table(rows), 0 if any(item.version for item in engines) else 1)


def _engine_text(engine: Installation) -> str:
    if engine.builds is not None:
        return f"✓ {engine.builds} builds engine files, ✗ cannot run them: {engine.missing}"
    if engine.version is None:
        return f"✗ {engine.missing}"
    return f"✓ {engine.version}{f', not tried yet: {engine.newer}' if engine.newer else ''}"


def _version_fault(package: str, version: str | None) -> UnsupportedVersion | None:
    return None if version is None else unsupported_version(package, version)


def _telemetry() -> str:
    """Return whether the telemetry of the engines' packages is on, which it is by default in both of them."""
    value = os.environ.get(TELEMETRY_SWITCH)
    if value and value.lower() in ("0", "false", "no", "off"):
        return f"ONNX Runtime's is on ({TELEMETRY_SWITCH}={value}), OpenVINO's is off"
    return "ONNX Runtime's and OpenVINO's are off"


def _verbs_on(system: str) -> str:
    return "all" if "tensorrt" in backends_on(system) else "all but build"


def _system_text(system: str) -> str:
    return f"verbs: {_verbs_on(system)}; engines: {', '.join(backends_on(system))}; {_CHECKED[system]}"


def _hub_cache() -> tuple[Path | None, list[str]]:
    """Return the folder of the hub cache, None if there is no home folder for it, and the checkpoints in it."""
    from qwen_image_engine.reference.checkpoint.hub_cache import hub_cache

    try:
        cache = hub_cache()
    except QwenImageError:
        return None, []
    return cache, sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*"))


def _diffusers_fault() -> str | None:
    """Return the reason why diffusers' pipelines cannot be imported.

    Their image processor imports torchvision. The import fails if torchvision was built for another torch.

    Returns:
        The reason; "" if no fault was found; None if diffusers is not installed.
    """
    if find_spec("diffusers") is None:
        return None
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        return f"{error.name} is not installed, and they import torchvision with torch; {_FITTING}"
    except (ImportError, OSError, RuntimeError) as error:
        pass_interruption(error)
        return f"cannot be imported: torchvision does not fit torch ({one_line(error)}); {_FITTING}"
    return ""


def _export_fault(packages: Mapping[str, str | None]) -> str | None:
    """Return the reason why the packages of the extra `export` cannot be used, or None if they can.

    The packages are imported, because only an import shows that they load.
    """
    lacking = [name for name in EXPORT_PACKAGES if packages[name] is None]
    if lacking:
        return f"{', '.join(lacking)} missing; {INSTALL}"
    try:
        with export_packages():
            for name in EXPORT_PACKAGES:
                importlib.import_module(name.replace("-", "_"))
    except QwenImageError as error:
        return str(error)
    return None


def _serve_fault() -> str | None:
    """Return the reason why the packages of the extra `serve` cannot be used, or None if they can."""
    try:
        with serve_packages():
            from qwen_image_engine.runtime.serve import server as _server  # noqa: F401
    except QwenImageError as error:
        return str(error)
    return None
