"""Recipes from files: what is read, and what is refused in words."""

import json
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.calibration.rules.quantisation import Rule
from qwen_image_engine.calibration.rules.recipe_file import QuantisationRecipe
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.export.targets import choose_target

FP8 = {"linears": "*", "precision": "fp8"}
INT8 = {"linears": "*.attn.*", "precision": "int8"}


def write(folder: Path, content: Any) -> Path:
    path = folder / "recipe.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_rules_are_read_in_order(tmp_path: Path) -> None:
    path = write(tmp_path, {"rules": [INT8, FP8], "skip_blocks": [3, 0], "compute_capability": 10.3})
    found = QuantisationRecipe.read(path)
    assert found.rules == (Rule("*.attn.*", "int8"), Rule("*", "fp8"))
    chosen = choose_target("tensorrt", "fp8", rules=found, exclude=["*.to_v"], skip_blocks=[1]).quantisation
    assert chosen is not None
    assert chosen.skip_blocks == (0, 1, 3)
    assert chosen.precision("transformer_blocks.2.attn.to_v") == "high"
    assert chosen.precision("transformer_blocks.2.attn.to_q") == "int8"
    assert chosen.precision("transformer_blocks.2.img_mlp.out") == "fp8"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "cannot be read as JSON"),
        ([], 'expected an object with the list "rules"'),
        ({"rules": [FP8], "blocks": []}, "no keys but"),
        ({"rules": []}, "names no layer"),
        (
            {"rules": [{"linears": "*", "precision": "int4"}]},
            'unknown precision "int4" for "\\*"; known: int8, fp8, high',
        ),
        ({"rules": [{"linears": "*"}]}, "precision is missing; expected"),
        ({"rules": [FP8], "skip_blocks": "0"}, "skip_blocks as a list of numbers"),
        ({"rules": [FP8], "skip_blocks": [True]}, "skip_blocks as a list of numbers"),
        ({"rules": [FP8], "compute_capability": "10"}, "compute_capability as a number"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        QuantisationRecipe.read(write(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"recipe\.json: cannot be read"):
        QuantisationRecipe.read(tmp_path / "recipe.json")


def test_the_twin_mixes_int8_and_fp8_without_a_gpu(tmp_path: Path) -> None:
    chosen = choose_target(
        "tensorrt-twin", "fp8", rules=QuantisationRecipe.read(write(tmp_path, {"rules": [INT8, FP8]}))
    )
    assert chosen.quantisation is not None
    assert chosen.quantisation.precisions() == {"int8", "fp8"}


@pytest.mark.parametrize(
    ("target", "precision", "content", "expected"),
    [
        ("tensorrt", "fp8", {"rules": [INT8, FP8]}, "need Blackwell.*found None"),
        ("tensorrt", "fp8", {"rules": [INT8, FP8], "compute_capability": 9.0}, "need Blackwell.*found 9.0"),
        ("cpu", "int8", {"rules": [INT8, FP8]}, "fp8 on a target that has int8 alone"),
        ("tensorrt", "fp8", {"rules": [INT8]}, "no linear has fp8"),
        ("tensorrt", "int8", {"rules": [INT8], "fp8_attention": True}, "it goes with --precision fp8"),
        ("tensorrt", "bf16", {"rules": [INT8]}, "bf16 quantises nothing"),
    ],
)
def test_what_a_bundle_cannot_have_is_refused(
    tmp_path: Path, target: str, precision: str, content: Any, expected: str
) -> None:
    with pytest.raises(UsageError, match=expected):
        choose_target(target, precision, rules=QuantisationRecipe.read(write(tmp_path, content)))
