"""The table of components, against the contracts and the attention that it speaks of."""

from typing import get_args

import pytest

from qwen_image_engine.engines.core.components import (
    COMPONENTS,
    EVERY_STEP,
    FOR_REFERENCE_IMAGES,
    NETWORKS,
    Attention,
    components_with,
)
from qwen_image_engine.engines.core.contract import CONTRACTS

LATENTS = {"tokens", "height", "width", "image"}
"""Axes of contracts that count latents."""

RUNS = {
    "prompt": "once a prompt.",
    "image": "once an image.",
    "step": "every step.",
    "picture": "once an image.",
    "tile": "once a tile.",
}
"""Ends of contracts' purposes."""


def test_every_contract_has_a_row_and_every_row_a_contract() -> None:
    assert list(COMPONENTS) == list(CONTRACTS)
    assert all(name == row.name for name, row in COMPONENTS.items())


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_row_says_what_its_contract_says(name: str) -> None:
    row, contract = COMPONENTS[name], CONTRACTS[name]
    inputs = {symbol for spec in contract.inputs for symbol in spec.symbols()}
    assert row.on_latents == bool(inputs & LATENTS)
    assert row.returns_cache == all(spec.is_cache for spec in contract.outputs)
    assert contract.purpose.endswith(RUNS[row.runs])


def test_sets_of_components() -> None:
    assert EVERY_STEP == ("step", "joint")
    assert FOR_REFERENCE_IMAGES == ("vision", "prefix_image", "vae_encoder")
    assert NETWORKS == ("text_encoder", "vision", "transformer", "vae")


@pytest.mark.parametrize("attention", get_args(Attention))
def test_a_checkpoint_has_one_component_for_its_steps(attention: Attention) -> None:
    rows = components_with(attention)
    assert [row.runs for row in rows].count("step") == 1
    assert {row.network for row in rows} == set(NETWORKS)
    assert ("joint" in [row.name for row in rows]) == (attention == "bidirectional")
