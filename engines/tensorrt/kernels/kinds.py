"""Kinds of kernels, from the type of a layer, the words of its tactic, and the nodes in its metadata.

No exact spelling is expected: a kernel that fuses several things has the kind of the greatest, in the order of `KINDS`,
and a kernel of which nothing is known is "other".
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Literal, get_args

from qwen_image_engine.engines.tensorrt.build.account import Names
from qwen_image_engine.engines.tensorrt.kernels.layer import Layer, Tensor

Kind = Literal["product", "attention", "rope", "norm", "other", "quantise", "cast", "copy"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""Products are matrix products and convolutions. "Other" is arithmetic of another sort, such as SiLU times a product,
and everything that is not known. "Quantise", "cast" and "copy" kernels change the form of numbers alone."""

_CONVOLUTION = re.compile(r"correlation|convolution", re.IGNORECASE)
_ROTATION = re.compile(r"MulMulMulMulSubAdd")
_ROUNDING = frozenset({"Roun", "Quan", "Dyna"})
_MOVING = frozenset(
    {"Resh", "Tran", "Move", "Conc", "Slic", "Gath", "Repl", "Spli", "Squeeze", "Expa", "Bloc", "Etc", "Noop"}
)
_FORMS = frozenset(
    {"Reshape", "Transpose", "Concat", "Slice", "Gather", "Split", "Squeeze", "Unsqueeze", "Expand", "Identity"}
)
_NONLINEAR = frozenset({"Silu", "Gelu", "Tanh", "Erf", "Sigm", "Exp"})
_NONLINEAR_NODES = frozenset({"Sigmoid", "Tanh", "Erf", "Gelu", "Softplus", "Exp"})


class Classifier:
    """The kinds of the layers of one account."""

    def __init__(self, names: Names, layers: Sequence[Layer]) -> None:
        """Note the products that a kernel of their own computes: another kernel that names one prepares it."""
        self._attentions = frozenset(names.attentions)
        self._products = frozenset(names.products)
        self._computed = {node for layer in layers if _is(layer, "product") for node in layer.nodes}

    def kind(self, layer: Layer, weights: Collection[Tensor]) -> Kind:
        """Return the kind of a layer. `weights` are the tensors that are weights, scales or other constants."""
        if layer.seen is None:
            return "copy"
        if layer.seen.kind in ("attention", "softmax"):
            return "attention"
        if layer.seen.kind == "product" or _CONVOLUTION.search(layer.type):
            # The two products around a softmax that is not fused are of the attention.
            return "attention" if self._attentions.intersection(layer.nodes) else "product"
        alone = self._products.intersection(layer.nodes) - self._computed
        if alone and any(item.is_matrix for item in weights):
            return "product"
        return _kind_of_rest(layer)


def _is(layer: Layer, kind: str) -> bool:
    return layer.seen is not None and layer.seen.kind == kind


def _kind_of_rest(layer: Layer) -> Kind:
    words, operators = frozenset(layer.words), layer.operators
    arithmetic = words - _MOVING - {"Cast"}
    if not words:
        arithmetic = operators - _FORMS - {"Cast", "QuantizeLinear", "DequantizeLinear"}
    if arithmetic and ("RotaryEmbedding" in operators or _ROTATION.search("".join(layer.words))):
        return "rope"
    named = any("Normalization" in operator for operator in operators)
    if "Mean" in words or ("Sqrt" in words and (named or "Div" in words)) or (named and arithmetic):
        return "norm"
    if words & _NONLINEAR or operators & _NONLINEAR_NODES:
        return "other"
    if _quantises(layer, words, operators):
        return "quantise"
    if arithmetic:
        return "other"
    if "Cast" in words or (not words and "Cast" in operators):
        return "cast" if _same_count(layer) else "copy"
    return "copy" if words or operators else "other"


def _quantises(layer: Layer, words: frozenset[str], operators: frozenset[str]) -> bool:
    if words & _ROUNDING or "QuantizeLinear" in operators or any("Quantize" in name for name in operators):
        return True
    wide = max((item.bits or 0 for item in layer.inputs if item.is_open or item.is_matrix), default=0)
    return wide > 8 and any(0 < (item.bits or 0) <= 8 for item in layer.outputs)


def _same_count(layer: Layer) -> bool:
    """Return whether the kernel does no more than change the type: it reads and writes one tensor of one form."""
    return len({item.name for item in layer.inputs if item.is_open or item.is_matrix}) == 1 and not (
        {"Conc", "Tran", "Gath"} & frozenset(layer.words)
    )
