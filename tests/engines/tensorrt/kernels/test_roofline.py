"""Estimates of a card by hand, from figures of the cards' data sheets."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qwen_image_engine.engines.plans.cards import find_card
from qwen_image_engine.engines.tensorrt.kernels.kernel import Kernel
from qwen_image_engine.engines.tensorrt.kernels.roofline import estimate

COPY = Kernel("c", "copy", "Move", (), True, 896 * 10**6, 896 * 10**6, 0, 0, None, None, None, 1, 16)
PRODUCT = replace(COPY, name="p", kind="product", flops=2095 * 10**9, format="bf16", weights=10**6)


def test_a_copy_takes_its_bytes_and_a_product_its_operations() -> None:
    card = find_card("rtx-5090")  # 1,792 GB/s; 209.5 TFLOPS in bf16 and 419 in FP8
    copy, product = estimate([COPY], card), estimate([PRODUCT], card)
    assert copy is not None
    assert product is not None
    assert (copy.seconds, copy.bound) == (pytest.approx(1e-3), "memory")
    assert (product.seconds, product.bound) == (pytest.approx(10e-3, rel=1e-3), "arithmetic")
    both = estimate([COPY, PRODUCT], card)
    assert both is not None
    assert (both.seconds, both.bound) == (pytest.approx(copy.seconds + product.seconds), "arithmetic")
    faster = estimate([replace(PRODUCT, format="fp8")], card)
    assert faster is not None
    assert faster.seconds == pytest.approx(product.seconds / 2, rel=1e-3)


def test_weights_are_read() -> None:
    card = find_card("rtx-5090")
    found = estimate([replace(PRODUCT, flops=0, read=0, written=0, weights=1792 * 10**6)], card)
    assert found is not None
    assert found.seconds == pytest.approx(1e-3)


def test_a_format_without_a_peak_counts_with_its_bytes() -> None:
    found = estimate([replace(PRODUCT, format="fp8")], find_card("rtx-3090"))
    assert found is not None
    assert (found.without_peak, found.bound) == (1, "memory")
    laptop = estimate([PRODUCT], find_card("rtx-5090-laptop"))
    assert laptop is not None
    assert laptop.without_peak == 1


def test_what_is_not_known_is_not_estimated() -> None:
    assert estimate([COPY, replace(COPY, read=None)], find_card("rtx-5090")) is None
    nothing = estimate([], find_card("rtx-5090"))
    assert nothing is not None
    assert (nothing.seconds, nothing.bound) == (0, None)
