"""Requests to quantise that cannot be carried out: a usage error in words, and nothing half-written."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.runtime.cli.main import main

REQUESTS = {
    "link": (("--precision", "int8", "--weights", "link"), "use --weights copy"),
    "pattern": (("--precision", "int8", "--exclude", "*.attn.to_w"), "'*.attn.to_w' matches none"),
    "pattern of what is never quantised": (("--precision", "int8", "--exclude", "proj_out"), "'proj_out' matches none"),
    "second pattern": (("--precision", "int8", "--exclude", "*.to_q", "--exclude", "to_k"), "'to_k' matches none"),
    "block": (("--precision", "int8", "--skip-blocks", "0,7"), "7; the transformer has blocks 0 to 1"),
    "every linear": (("--precision", "int8", "--exclude", "*"), "linears is left to have int8"),
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


RECIPES = {
    "unknown precision": ([{"linears": "*", "precision": "int4"}], {}, 'unknown precision "int4"'),
    "no layer": ([], {}, "names no layer"),
    "pattern": ([{"linears": "*.to_w", "precision": "fp8"}], {}, "'*.to_w' matches none"),
    "block": ([{"linears": "*", "precision": "fp8"}], {"skip_blocks": [9]}, "9; the transformer has blocks 0 to 1"),
    "every block": (
        [{"linears": "*", "precision": "fp8"}],
        {"skip_blocks": [0, 1]},
        "linears is left to have fp8, the bundle's precision",
    ),
    "shadowed": (
        [{"linears": "*", "precision": "int8"}, {"linears": "*.to_q", "precision": "fp8"}],
        {"compute_capability": 10.0},
        "the rule '*.to_q' (fp8) decides nothing",
    ),
    "exception behind what it is of": (
        [{"linears": "*", "precision": "fp8"}, {"linears": "*.img_mlp.out", "precision": "high"}],
        {},
        "all that it matches are matched by '*' before it; put it in front",
    ),
    "below Blackwell": (
        [{"linears": "*.to_q", "precision": "int8"}, {"linears": "*", "precision": "fp8"}],
        {"compute_capability": 8.9},
        "need Blackwell",
    ),
    "no number": ([{"linears": "*", "precision": "fp8"}], {"compute_capability": math.nan}, "compute_capability as a"),
    "truth": ([{"linears": "*", "precision": "fp8"}], {"compute_capability": True}, "compute_capability as a number"),
}


FINE = {
    "the rest, of which there is none": [("*.attn.*", "fp8"), ("*.img_mlp.*", "fp8"), ("*", "high")],
    "the same precision twice": [("*", "fp8"), ("*.attn.*", "fp8")],
    "what is excluded before it": [("transformer_blocks.0.*", "fp8"), ("*.attn.to_q", "high"), ("*", "fp8")],
}


@pytest.mark.parametrize("name", list(FINE))
def test_recipes_whose_rules_decide_nothing_for_a_reason(
    random_checkpoint: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    file = tmp_path / "recipe.json"
    rules = [{"linears": linears, "precision": precision} for linears, precision in FINE[name]]
    file.write_text(json.dumps({"rules": rules}), encoding="utf-8")
    flags = ["--target", "tensorrt", "--precision", "fp8", "--recipe", str(file)]
    excluded = ["--exclude", "transformer_blocks.[1-9]*.attn.to_q"] if "excluded" in name else []
    assert main(["plan", "-m", str(random_checkpoint()), *flags, *excluded]) == 0


@pytest.mark.parametrize("name", list(RECIPES))
def test_recipes(
    random_checkpoint: Callable[..., Path], output: Path, tmp_path: Path, fails: Callable[..., str], name: str
) -> None:
    rules, others, word = RECIPES[name]
    file = tmp_path / "recipe.json"
    file.write_text(json.dumps({"rules": rules, **others}), encoding="utf-8")
    flags = ("--target", "tensorrt", "--precision", "fp8", "--recipe", file)
    assert word in fails(2, "plan", "-m", random_checkpoint(), *flags)
    assert word in fails(2, "export", "-m", random_checkpoint(), output / "bundle", *flags)


def test_flags_are_refused_before_the_checkpoint_is_read(output: Path, fails: Callable[..., str]) -> None:
    flags = ("--precision", "int8", "--weights", "link")
    assert "use --weights copy" in fails(2, "export", "-m", output / "absent", output / "bundle", *flags)
