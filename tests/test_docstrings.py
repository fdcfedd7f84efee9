"""The rules of docs/style.md that a test can hold docstrings to."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import ROOT

FOLDERS = ("engines", "runtime", "reference", "calibration", "export")
NO_NOUN = re.compile(r"(What|That|Those|Of|One|Which|Where)\b")
NO_CONDITION = re.compile(r"^\s+\w+: (so|not so|likewise|as in|as of|it is)\b", re.MULTILINE)


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Lines and texts of all strings that stand alone: docstrings, and those behind constants."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        body = getattr(node, "body", None)
        for item in body if isinstance(body, list) else ():
            if (
                isinstance(item, ast.Expr)
                and isinstance(item.value, ast.Constant)
                and isinstance(item.value.value, str)
            ):
                yield item.lineno, item.value.value


def faults(text: str) -> list[str]:
    found = ["begins with a word that is no noun"] if NO_NOUN.match(text.strip()) else []
    _, _, raises = text.partition("Raises:")
    return [*found, *(["an error without its condition"] if NO_CONDITION.search(raises) else [])]


@pytest.mark.parametrize("folder", FOLDERS)
def test_docstrings_name_their_subject(folder: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, text in docstrings(path)
        for fault in faults(text)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "text",
    ["What a plan holds.", "Of the graph.", "One.", "Read it.\n\n    Raises:\n        UsageError: so it is.\n"],
)
def test_each_rule_is_seen(text: str) -> None:
    assert faults(text)
    assert not faults("Return the plan.\n\n    Raises:\n        UsageError: the plan is missing.\n")
