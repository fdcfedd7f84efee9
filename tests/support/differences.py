"""Differences between arrays by the measures that tests plant."""

from qwen_image_engine.export.verify.difference import Difference


def planted(relative_l2: float, cosine: float, max_abs: float) -> Difference:
    return Difference({"relative_l2": relative_l2, "cosine": cosine, "max_abs": max_abs})
