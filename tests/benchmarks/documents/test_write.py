"""Figures in README.md and docs/ are those of the committed results."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def test_figures_are_those_of_the_results() -> None:
    found = subprocess.run(
        [sys.executable, "-m", "benchmarks.documents.write", "--check"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert found.returncode == 0, f"{found.stderr}: run make docs"


def test_a_drift_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.documents.write import written

    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.sub(r"(?<=worst )\d", "9", text, count=1)
    sentence = re.sub(r"(<!-- figure: \w+ -->)\d", r"\g<1>x", text, count=1)
    assert text not in (table, sentence)
    assert written(table) == written(sentence) == text


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (path.parent / target).exists(), target
