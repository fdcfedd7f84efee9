"""The page of TensorRT for RTX's calls names what its bindings have."""

import re

import pytest

from tests.support.paths import ROOT

PAGE = ROOT / "docs" / "embedding" / "tensorrt-rtx.md"


def test_names_are_those_of_the_bindings() -> None:
    bindings = pytest.importorskip("tensorrt_rtx")
    rows = [line.rpartition(" | ")[2] for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"]
    names = [name for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert len(names) > 20
    for name in names:
        found = bindings
        for part in name.split("."):
            assert hasattr(found, part), name
            found = getattr(found, part)
