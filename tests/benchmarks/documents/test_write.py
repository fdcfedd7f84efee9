"""Figures in README.md and docs/ are those of the committed results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.documents.write import written
from tests.support.paths import ROOT

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))


@pytest.mark.process
def test_figures_are_those_of_the_results() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.documents.write", "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert found.returncode == 0, f"{found.stderr}: run make docs"


def test_a_drift_is_seen() -> None:
    measured, readme = ((ROOT / name).read_text(encoding="utf-8") for name in ("docs/measured.md", "README.md"))
    table = re.sub(r"(?<=worst )\d", "9", measured, count=1)
    sentence = re.sub(r"(<!-- figure: \w+ -->)\d", r"\g<1>x", readme, count=1)
    assert measured != table
    assert readme != sentence
    assert (written(table), written(sentence)) == (measured, readme)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target
