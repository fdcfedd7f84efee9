"""Accounts that hold anything: the project's error, and no other."""

from __future__ import annotations

import json
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.kernels.layer import read_layers
from tests.engines.tensorrt.kernels.test_sizes import layer, tensor

NAMES = {"Profiles": ["a"], "Attentions": ["A"], "Products": ["G"], "FromCodes": []}


def document(**changes: Any) -> str:
    made = layer("gemm", [tensor("x", [1, -1, 8])], [tensor("y", [1, -1, 8])], "G")
    return json.dumps({**NAMES, "Layers": [{**made, **changes}]})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        json.dumps({**NAMES, "Layers": 3}),
        json.dumps({**NAMES, "Layers": [3]}),
        "[" * 100_000,
        '{"Layers": ' + "[" * 100_000,
        document(Inputs=3),
        document(Inputs=None),
        document(Inputs=[tensor("x", [True])]),
        document(Inputs=[tensor("x", [1.5])]),  # type: ignore[list-item]
        document(Inputs=[tensor("x", [-2])]),
        document(Inputs=[tensor("x", [10**30])]),
        document(Inputs=[tensor("x", [1] * 17)]),
        document(Outputs=[{"Name": "y", "Dimensions": "8"}]),
        document(Inputs=[tensor("x", [8])] * 257),
    ],
)
def test_other_forms(text: str) -> None:
    with pytest.raises(QwenImageError, match="has another form than known"):
        read_layers(text)


def test_types_and_names_that_are_not_known_are_kept() -> None:
    _, (only,) = read_layers(document(Inputs=[tensor("x [profile 2]", [1, -1, 8], "Quaternion"), 3], LayerType=7))
    (found,) = only.inputs
    assert (found.name, found.bits, found.closed, found.is_open) == ("x", None, 8, True)


@pytest.mark.parametrize(
    ("words", "bits"),
    [
        ("BFloat16", 16),
        ("Half", 16),
        ("Float", 32),
        ("FP8", 8),
        ("Int8", 8),
        ("FP4E2M1", 4),
        ("Int64", 64),
        ("Bool", 8),
    ],
)
def test_bits(words: str, bits: int) -> None:
    _, (only,) = read_layers(document(Inputs=[tensor("x", [8], words)]))
    assert only.inputs[0].bits == bits


def test_the_form_of_tensorrt_10() -> None:
    found = {"Name": "x", "Dimensions": [1, 8], "Format/Datatype": "Row major linear FP16 format"}
    _, (only,) = read_layers(document(Inputs=[found]))
    assert (only.inputs[0].bits, only.inputs[0].strides) == (16, ())
