"""The length of functions in rooms that put the work of others together: one screen each, to be read as a list."""

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.paths import ROOT

MOST_LINES = 60
ROOMS = ("runtime/cli/verbs", "runtime/tools/build", "export/bundle", "export/estimate", "engines/tensorrt/build")


def lengths(file: Path) -> Iterator[tuple[str, int]]:
    """Yield each function's name and the lines of its body, without the docstring."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            yield node.name, (body[-1].end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_bodies_fit_a_screen() -> None:
    files = [file for room in ROOMS for file in sorted((ROOT / room).glob("*.py"))]
    assert len(files) > 30
    found = {
        f"{file.relative_to(ROOT)}: {name}": lines
        for file in files
        for name, lines in lengths(file)
        if lines > MOST_LINES
    }
    assert found == {}
