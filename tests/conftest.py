"""Fixtures shared by every test folder."""

import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Where torchvision is installed beside a CPU build of torch, its compiled operators are missing and this one
# module fails to import, and transformers with it; nothing here calls an operator.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

# Import mode importlib adds no folder to the path, and the fixture module is imported by name.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def random_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`random_checkpoint(name="narrow", **options) -> Path`: each variant of `write_checkpoint` once."""
    written: dict[tuple[Any, ...], Path] = {}

    def checkpoint(name: str = "narrow", **options: Any) -> Path:
        from random_checkpoint import write_checkpoint

        key = (name, *sorted(options.items()))
        if key not in written:
            written[key] = write_checkpoint(tmp_path_factory.mktemp(name), name, **options)
        return written[key]

    return checkpoint


@pytest.fixture(scope="session")
def bundle(random_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`bundle(name="narrow", **options) -> Path`: `random_checkpoint(name, **options)` exported once; read-only."""
    exported: dict[tuple[Any, ...], Path] = {}

    def export(name: str = "narrow", **options: Any) -> Path:
        from qwen_image_engine.export.bundle import export_bundle

        key = (name, *sorted(options.items()))
        if key not in exported:
            exported[key] = tmp_path_factory.mktemp(name) / "bundle"
            export_bundle(random_checkpoint(name, **options), exported[key])
        return exported[key]

    return export
