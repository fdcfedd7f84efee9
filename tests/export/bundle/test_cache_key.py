"""Cache keys of exports: a change of any source that decides the output changes them."""

import shutil
from pathlib import Path

import pytest

from qwen_image_engine.export.bundle.cache_key import source_sha256, tool
from tests.support.paths import ROOT


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A copy of the sources, which a test may change."""
    for folder in ("calibration", "engines", "export", "reference"):
        ignored = shutil.ignore_patterns("checkpoint" if folder == "reference" else "optimum")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=ignored)
    shutil.copytree(ROOT / "reference" / "checkpoint", tmp_path / "reference" / "checkpoint")
    return tmp_path


def test_the_key_is_of_these_sources(home: Path) -> None:
    assert source_sha256(home) == tool().source_sha256


@pytest.mark.parametrize(
    "name",
    [
        "export/passes/linear_to_gemm.py",
        "export/passes/quantised/linear_to_int8.py",
        "export/graph/nodes.py",
        "export/trace.py",
        "reference/networks/transformer.py",
        "calibration/quantise/fp8.py",
        "engines/core/contract.py",
    ],
)
def test_a_changed_source_changes_it(home: Path, name: str) -> None:
    before = source_sha256(home)
    with (home / name).open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert source_sha256(home) != before


def test_a_pass_under_another_name_changes_it(home: Path) -> None:
    before = source_sha256(home)
    (home / "export" / "passes" / "cleanup.py").rename(home / "export" / "passes" / "tidy.py")
    assert source_sha256(home) != before


def test_the_recipe_of_the_small_checkpoint_does_not_matter(home: Path) -> None:
    before = source_sha256(home)
    (home / "reference" / "shapes" / "config.py").write_text("", encoding="utf-8")
    assert source_sha256(home) == before
