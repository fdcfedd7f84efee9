"""The component of a bundle where values that are not finite come from, and the weight that brings them in."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qwen_image_engine.engines.core.dtypes import STORED_FLOATS
from qwen_image_engine.export.thresholds import TEACHER_FORCED
from qwen_image_engine.export.verify.result import NotFiniteOutput, Row
from qwen_image_engine.reference.storage.finite import NotFiniteError
from qwen_image_engine.reference.storage.tensor_blocks import finite_blocks
from qwen_image_engine.reference.storage.tensor_file import read_header
from qwen_image_engine.runtime.bundle.manifest import Manifest


def first_not_finite(bundle: Path, manifest: Manifest, rows: Iterable[Row]) -> NotFiniteOutput | None:
    """Return the first component whose output is not finite; None if every output is finite.

    The weights of that component are read, which takes as long as reading its files.

    Raises:
        QwenImageError: a weight file cannot be read.
    """
    row = next((row for row in rows if not row.worst.is_finite), None)
    if row is None or row.component == TEACHER_FORCED:
        return None if row is None else NotFiniteOutput(row.component, row.case)
    for name in manifest.components[row.component].weights:
        tensor = _not_finite(bundle / name)
        if tensor is not None:
            return NotFiniteOutput(row.component, row.case, name, tensor)
    return NotFiniteOutput(row.component, row.case)


def _not_finite(path: Path) -> str | None:
    """Return the name of the first tensor of a weight file that is not finite."""
    for name, source in read_header(path).items():
        if source.dtype not in STORED_FLOATS:
            continue
        try:
            for _ in finite_blocks(source):
                pass
        except NotFiniteError:
            return name
    return None
