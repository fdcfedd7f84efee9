"""The bytes of the weights that a graph reads from files beside it, from the ONNX file alone.

A file of weights is a network's, whose graphs each read a part of it; a linked file holds more than the graphs read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from qwen_image_engine.engines.core.graph.external_weights import ExternalWeight, external_weights, read_graph


def weight_bytes(model: Path) -> int:
    """Return the bytes of the external data of a checked graph; data of several initializers count once.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is no ONNX model.
    """
    return bytes_of(external_weights(read_graph(model)))


def bytes_of(weights: Iterable[ExternalWeight]) -> int:
    """Return the bytes of weights; bytes of several weights count once."""
    return sum({(weight.location, weight.offset): weight.nbytes for weight in weights}.values())
