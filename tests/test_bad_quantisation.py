"""Requests to quantise that cannot be carried out: a usage error in words, and nothing half-written."""

from collections.abc import Callable
from pathlib import Path

import pytest

REQUESTS = {
    "link": (("--precision", "int8", "--weights", "link"), "use --weights copy"),
    "pattern": (("--precision", "int8", "--exclude", "*.attn.to_w"), "'*.attn.to_w' matches none"),
    "pattern of what is never quantised": (("--precision", "int8", "--exclude", "proj_out"), "'proj_out' matches none"),
    "second pattern": (("--precision", "int8", "--exclude", "*.to_q", "--exclude", "to_k"), "'to_k' matches none"),
    "block": (("--precision", "int8", "--skip-blocks", "0,7"), "--skip-blocks 7: the transformer has blocks 0 to 1"),
    "block in words": (("--precision", "int8", "--skip-blocks", "first"), "expected numbers with commas"),
    "fp32": (("--exclude", "*.to_q"), "fp32 quantises nothing"),
    "precision": (("--precision", "int4"), "--target cpu --precision int8"),
}


@pytest.mark.parametrize("name", list(REQUESTS))
def test_usage_errors(
    random_checkpoint: Callable[..., Path], output: Path, fails: Callable[..., str], name: str
) -> None:
    flags, word = REQUESTS[name]
    assert word in fails(2, "export", "-m", random_checkpoint(), output / "bundle", *flags)
    assert word in fails(2, "plan", "-m", random_checkpoint(), *flags)


def test_flags_are_refused_before_the_checkpoint_is_read(output: Path, fails: Callable[..., str]) -> None:
    flags = ("--precision", "int8", "--weights", "link")
    assert "use --weights copy" in fails(2, "export", "-m", output / "absent", output / "bundle", *flags)
