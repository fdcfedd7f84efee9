"""Values of flags."""

import argparse

import pytest

from qwen_image_engine.runtime.cli.shared.arguments import byte_count


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("24GB", 24 * 10**9),
        ("500 MB", 5 * 10**8),
        ("1.5G", 15 * 10**8),
        ("7", 7),
        ("7B", 7),
        ("1kB", 1000),
        ("2T", 2 * 10**12),
        ("24GiB", 24 * 2**30),
        ("512 MiB", 2**29),
        ("1.5Gi", 3 * 2**29),
        ("1KiB", 1024),
        ("1kiB", 1024),
        ("2TiB", 2**41),
    ],
)
def test_bytes(text: str, count: int) -> None:
    assert byte_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "0", "-1", "24 gigabytes", "1e9", "GB", "GiB", "4iB", "4KB", "0.1", "٣GB", "9" * 20]
)
def test_no_bytes(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="24GB"):
        byte_count(text)
