"""Names that README.md and docs/ import: there, and taken from packages, whose modules may move."""

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FENCE = re.compile(r"```python\n(.*?)```", re.DOTALL)

PUBLIC = {
    ("qwen_image_engine.calibration.observe", "Calibration"),
    ("qwen_image_engine.calibration.sensitivity", "analyse"),
    ("qwen_image_engine.export.bundle", "export_bundle"),
    ("qwen_image_engine.export.verify", "Limit"),
    ("qwen_image_engine.export.verify", "verify"),
    ("qwen_image_engine.export.verify", "verify_bundle"),
    ("qwen_image_engine.export.verify.pictures", "Setting"),
    ("qwen_image_engine.export.verify.pictures", "verify_pictures"),
    ("qwen_image_engine.reference.checkpoint", "Checkpoint"),
    ("qwen_image_engine.runtime", "QwenImage"),
    ("qwen_image_engine.runtime.tools.bench", "bench"),
    ("qwen_image_engine.runtime.tools.report", "write_report"),
}
"""Promised to those who imported them from modules that have moved."""


def documented() -> set[tuple[str, str]]:
    """Modules and names that documents import from this package."""
    names = set()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for code in FENCE.findall(path.read_text(encoding="utf-8")):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("qwen_image_engine"):
                    names |= {(str(node.module), alias.name) for alias in node.names}
    return names


def test_what_documents_import_is_promised() -> None:
    assert documented() == PUBLIC


@pytest.mark.parametrize(("package", "name"), sorted(PUBLIC))
def test_a_package_has_it(package: str, name: str) -> None:
    module = importlib.import_module(package)
    assert Path(str(module.__file__)).name == "__init__.py"
    assert callable(getattr(module, name))
    assert name in module.__all__
