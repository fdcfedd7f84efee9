"""The table of cards, against peaks that NVIDIA prints, and the names that people write."""

from collections.abc import Mapping

import pytest

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.cuda.compute_capability import FP8
from qwen_image_engine.engines.plans.cards import BUILT_FOR, CARDS, FORMATS, Card, find_card

GIB = 1 << 30

WHITEPAPERS: Mapping[str, Mapping[str, float]] = {
    "rtx-3070": {"bf16": 40.6, "int8": 162.6},
    "rtx-3080": {"bf16": 59.5, "int8": 238},
    "rtx-3090": {"bf16": 71, "int8": 284},
    "rtx-a6000": {"bf16": 154.8, "int8": 309.7},
    "a40": {"bf16": 149.7, "int8": 299.3},
    "rtx-4090": {"bf16": 165.2, "fp8": 330.3, "int8": 660.6},
    "rtx-6000-ada": {"bf16": 364.2, "fp8": 728.5, "int8": 728.5},
    "l4": {"bf16": 121, "fp8": 242.5, "int8": 242.5},
    "l40": {"bf16": 181.05, "fp8": 362, "int8": 362},
    "l40s": {"fp8": 733, "int8": 733},
    "rtx-5070": {"bf16": 61.7, "fp8": 123.5, "int8": 246.9, "fp4": 493.9},
    "rtx-5070-ti": {"bf16": 87.9, "fp8": 175.8, "int8": 351.5, "fp4": 703},
    "rtx-5080": {"bf16": 112.6, "fp8": 225.1, "int8": 450.2, "fp4": 900.4},
    "rtx-5090": {"bf16": 209.5, "fp8": 419, "int8": 838, "fp4": 1676},
}
"""Dense peaks in tera-operations, products of floating point summed in float32, from NVIDIA's whitepapers of GA102, Ada
and RTX Blackwell and the data sheets of A40, L4, L40 and L40S."""

SPARSE = {
    "rtx-4060": ("int8", 242),
    "rtx-4060-ti": ("int8", 353),
    "rtx-4070": ("int8", 466),
    "rtx-4070-super": ("int8", 568),
    "rtx-4070-ti": ("int8", 641),
    "rtx-4070-ti-super": ("int8", 706),
    "rtx-4080": ("int8", 780),
    "rtx-4080-super": ("int8", 836),
    "rtx-4090": ("int8", 1321),
    "rtx-2000-ada": ("fp8", 191.9),
    "rtx-5060": ("fp4", 614),
    "rtx-5060-ti": ("fp4", 759),
    "rtx-5070": ("fp4", 988),
    "rtx-5070-ti": ("fp4", 1406),
    "rtx-5080": ("fp4", 1801),
    "rtx-5090": ("fp4", 3352),
    "rtx-pro-6000": ("fp4", 4000),
    "rtx-a4000": ("bf16", 153.4),
    "rtx-a5000": ("bf16", 222.2),
}
"""Format and tera-operations "with sparsity", which are twice the dense ones, from NVIDIA's overviews of cards."""


@pytest.mark.parametrize("name", WHITEPAPERS)
def test_dense_peaks_of_the_whitepapers(name: str) -> None:
    for kind, peak in WHITEPAPERS[name].items():
        assert CARDS[name].flops[kind] / 1e12 == pytest.approx(peak, rel=0.005), kind


@pytest.mark.parametrize("name", SPARSE)
def test_peaks_with_sparsity_are_twice_the_dense_ones(name: str) -> None:
    kind, peak = SPARSE[name]
    assert 2 * CARDS[name].flops[kind] / 1e12 == pytest.approx(peak, rel=0.01)


@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_rows_are_consistent(card: Card) -> None:
    assert card.compute_capability in BUILT_FOR
    assert 8 * GIB <= card.memory_bytes <= 128 * GIB
    assert card.memory_bytes % GIB == 0
    assert 2e11 < card.bandwidth < 2e12
    assert set(card.flops) <= set(FORMATS)
    if card.flops:
        assert ("fp8" in card.flops) == (float(card.compute_capability) >= FP8)
        assert ("fp4" in card.flops) == (float(card.compute_capability) >= 10)
        assert card.flops["int8"] in (2 * card.flops["bf16"], 4 * card.flops["bf16"])
        assert card.flops.get("fp8", 2 * card.flops["bf16"]) == 2 * card.flops["bf16"]
        assert card.flops.get("fp4", 2 * card.flops["int8"]) == 2 * card.flops["int8"]


def test_rows_are_in_order_of_their_compute_capabilities() -> None:
    found = [float(card.compute_capability) for card in CARDS.values()]
    assert found == sorted(found)
    assert set(map(str, found)) == set(BUILT_FOR)


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("rtx-5090", "rtx-5090"),
        ("RTX 5090", "rtx-5090"),
        ("rtx5090", "rtx-5090"),
        ("5090", "rtx-5090"),
        ("NVIDIA GeForce RTX 5090", "rtx-5090"),
        ("RTX_4070_Ti_Super", "rtx-4070-ti-super"),
        ("4070ti", "rtx-4070-ti"),
        ("rtx 3060 12GB", "rtx-3060"),
        ("RTX 3080 10GB", "rtx-3080"),
        ("rtx-3080-12gb", "rtx-3080-12gb"),
        ("4060 Ti 16 GB", "rtx-4060-ti-16gb"),
        ("RTX 6000 Ada Generation", "rtx-6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell", "rtx-pro-6000"),
        ("A6000", "rtx-a6000"),
        ("L40S", "l40s"),
        ("a10", "a10"),
        ("GB10", "gb10"),
    ],
)
def test_names_that_people_write(name: str, card: str) -> None:
    assert find_card(name).name == card


def test_every_name_and_text_is_found() -> None:
    for card in CARDS.values():
        assert find_card(card.name) is card
        assert find_card(card.text.removesuffix(" (DGX Spark)")) is card


@pytest.mark.parametrize("name", ["rtx-5095", "rtx-3060-24gb", "h100", "", "rtx"])
def test_an_unknown_card_names_those_that_are_known(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        find_card(name)
    text = str(refused.value)
    assert "\n" not in text
    assert repr(name) in text
    assert all(card in text for card in CARDS)


def test_the_closest_cards_come_first() -> None:
    with pytest.raises(UsageError, match=r"did you mean rtx-4070-ti\b"):
        find_card("rtx-4070-to")
