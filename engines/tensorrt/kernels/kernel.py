"""The kernels of one profile of a plan: kind, bytes read and written, bytes of weights, and operations."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import isqrt

from qwen_image_engine.engines.tensorrt.build.account import Names
from qwen_image_engine.engines.tensorrt.kernels.kinds import Classifier, Kind
from qwen_image_engine.engines.tensorrt.kernels.layer import Layer, Tensor
from qwen_image_engine.engines.tensorrt.kernels.ports import Ports
from qwen_image_engine.engines.tensorrt.kernels.sizes import Sizes, attention_operands

_SCALES = 8
"""A constant with less than an eighth of the elements of a kernel's largest is a scale or a bias, and no weight."""


@dataclass(frozen=True)
class Operand:
    """Activation that a product multiplies with its weights.

    Attributes:
        name: name of the activation.
        elements: number of elements, rows times K.
        columns: columns N of the product.
        bits: bits of an element.
    """

    name: str
    elements: int
    columns: int
    bits: int


@dataclass(frozen=True)
class Heads:
    """Tensors of a fused attention.

    Attributes:
        query: elements of the queries.
        key: elements of the keys, those before the call among them.
        value: elements of the values, likewise.
        output: elements of the output.
        query_tokens: tokens of the queries.
        key_tokens: tokens of the keys.
        bits: bits of an element of the queries.
    """

    query: int
    key: int
    value: int
    output: int
    query_tokens: int
    key_tokens: int
    bits: int


@dataclass(frozen=True)
class Kernel:
    """A kernel of a plan.

    Attributes:
        name: name of the layer in the account.
        kind: kind of the kernel.
        words: tactic of a generated kernel without its hash, or the type of the layer.
        attentions: names of the graph's attentions that the kernel computes or prepares.
        moving: whether what it computes depends on the picture, the prompt or the references. Modulation does not: it
            depends on the time alone.
        read: bytes of activations read; None if a size or a type is not known.
        written: bytes of activations written; None likewise.
        weights: bytes of weights, scales and other constants read.
        flops: operations of a product or an attention, a multiplication and its addition being two; None if a size is
            not known. Other kernels have 0.
        format: number format of a product's or an attention's operands: "bf16", "fp8", "int8", "fp4", "fp32"; None if
            it is not known or the kernel is neither.
        operand: activation of a product with weights; None for others.
        heads: tensors of a fused attention; None for others.
        output_elements: elements of the largest output; None if not known.
        output_bits: bits of an element of it.
    """

    name: str
    kind: Kind
    words: str
    attentions: tuple[str, ...]
    moving: bool
    read: int | None
    written: int | None
    weights: int
    flops: int | None
    format: str | None
    operand: Operand | None
    heads: Heads | None
    output_elements: int | None
    output_bits: int


def kernels_of(
    names: Names, layers: Sequence[Layer], ports: Ports, bound: Collection[str] = ()
) -> tuple[tuple[Kernel, ...], bool]:
    """Return the kernels of one profile, and whether the sizes of its tensors are known.

    Args:
        names: names of the graph's attentions and products.
        layers: layers of the profile, in the order of the plan.
        ports: sizes of the graph's inputs and outputs.
        bound: names of weights that are inputs of the plan. An input of two closed axes that no kernel makes and that
            is no input of the contract counts as one too.
    """
    sizes = Sizes(layers, ports)
    classifier = Classifier(names, layers)
    made = {item.name for layer in layers for item in layer.outputs}
    moving, attentions, kernels = set(ports.moving), frozenset(names.attentions), []
    for layer in layers:
        held = [
            item
            for item in layer.inputs
            if item.name in bound or (item.is_matrix and item.name not in made and item.name not in ports.inputs)
        ]
        # Single numbers that no kernel makes come from the host: sizes of open axes.
        activations = [
            item
            for item in layer.inputs
            if item not in held and (item.is_open or item.closed > 1 or item.name in made or item.name in ports.inputs)
        ]
        weights = (*layer.constants, *held)
        kind = classifier.kind(layer, weights)
        moves = any(item.name in moving for item in activations)
        if moves:
            moving.update(item.name for item in layer.outputs)
        operand = _operand(layer, activations, weights, sizes) if kind == "product" else None
        heads = _heads(layer, sizes) if kind == "attention" else None
        output = max((sizes.elements(item) or 0, item.bits or 0) for item in layer.outputs) if layer.outputs else (0, 0)
        kernels.append(
            Kernel(
                name=layer.name,
                kind=kind,
                words="".join(layer.words) or layer.type,
                attentions=tuple(node for node in layer.nodes if node in attentions),
                moving=moves,
                read=_bytes(activations, sizes),
                written=_bytes(layer.outputs, sizes),
                weights=sum(item.closed * (item.bits or 0) // 8 for item in weights),
                flops=_flops(kind, layer, activations, weights, sizes, heads),
                format=_format(layer, (*activations, *weights)) if kind in ("product", "attention") else None,
                operand=operand,
                heads=heads,
                output_elements=output[0] or None,
                output_bits=output[1],
            )
        )
    return tuple(kernels), sizes.known and all(item.read is not None and item.written is not None for item in kernels)


def _bytes(tensors: Iterable[Tensor], sizes: Sizes) -> int | None:
    """Return the bytes of tensors; None if a size or a type is not known.

    Parts of one tensor have together at most the bytes of the tensor: what is listed twice is read once.
    """
    bits: defaultdict[str, int] = defaultdict(int)
    most: dict[str, int] = {}
    for item in tensors:
        elements = sizes.elements(item)
        if elements is None or item.bits is None:
            return None
        bits[item.name] += elements * item.bits
        whole = sizes.whole(item)
        most[item.name] = (max(elements, whole) if whole is not None else elements) * item.bits
    return sum(min(count, most[name]) for name, count in bits.items()) // 8


def _matrices(weights: Collection[Tensor]) -> list[Tensor]:
    found = [item for item in weights if item.is_matrix]
    largest = max((item.closed for item in found), default=0)
    return [item for item in found if item.closed * _SCALES > largest]


def _operand(layer: Layer, activations: Sequence[Tensor], weights: Collection[Tensor], sizes: Sizes) -> Operand | None:
    """Return the activation A of A[rows, K] W[K, N] = C[rows, N]: the one for which A / K and C / N are equal."""
    outputs = [elements for item in layer.outputs if (elements := sizes.elements(item))]
    read = sorted(((sizes.elements(item) or 0, item) for item in activations), key=lambda pair: -pair[0])
    for weight in sorted(_matrices(weights), key=lambda item: -item.closed):
        axes = [size for size in weight.dims if size > 1]
        for inner, columns in itertools.permutations(axes) if len(axes) == 2 else ():
            for elements, item in read:
                if elements and any(elements * columns == output * inner for output in outputs):
                    return Operand(item.name, elements, columns, item.bits or 0)
    return None


def _heads(layer: Layer, sizes: Sizes) -> Heads | None:
    found = attention_operands(layer)
    if found is None:
        return None
    counts = [sizes.elements(item) for item in (found.query, found.key, found.value, layer.outputs[0])]
    query, key, value, output = (count or 0 for count in counts)
    if not query or not key or not value or not output:
        return None
    tokens = (sizes.tokens(found.query) or 1, sizes.tokens(found.key) or 1)
    return Heads(query, key, value, output, *tokens, found.query.bits or 0)


def _flops(
    kind: Kind,
    layer: Layer,
    activations: Sequence[Tensor],
    weights: Collection[Tensor],
    sizes: Sizes,
    heads: Heads | None,
) -> int | None:
    """Return the operations of a product or an attention: 2 M N K of a product, 4 heads S K d of an attention."""
    if heads is not None:
        return 4 * heads.query * heads.key_tokens
    if kind == "attention" and layer.seen is not None and layer.seen.kind == "softmax":
        return 0
    if kind not in ("product", "attention"):
        return 0
    output = max((sizes.elements(item) or 0 for item in layer.outputs), default=0)
    if not output:
        return None
    if matrices := _matrices(weights):
        return sum(_flops_with(weight, layer, activations, output, sizes) for weight in matrices)
    largest = sorted((sizes.elements(item) or 0 for item in activations), reverse=True)[:2]
    if len(largest) < 2 or not all(largest):
        return None
    # A product of activations has batch * M K and batch * K N elements going in and batch * M N coming out.
    form = max(layer.outputs, key=lambda item: sizes.elements(item) or 0).dims
    batch = form[0] if len(form) > 2 and form[0] > 0 else 1
    return 2 * isqrt(largest[0] * largest[1] * output // batch)


def _flops_with(weight: Tensor, layer: Layer, activations: Sequence[Tensor], output: int, sizes: Sizes) -> int:
    """Return the operations of a product with a weight, or of a convolution with filters [out, in, rows, columns]."""
    axes = [size for size in weight.dims if size > 1]
    if len(axes) > 2:
        return 2 * output * weight.closed // weight.dims[0]
    operand = _operand(layer, activations, (weight,), sizes)
    return 2 * operand.elements * operand.columns if operand else 2 * output * min(axes)


def _format(layer: Layer, tensors: Collection[Tensor]) -> str | None:
    seen = layer.seen
    if any(item.bits == 4 and "int" not in item.dtype.lower() for item in tensors):
        return "fp4"
    if seen is not None and seen.kind == "attention":
        return "fp8" if seen.reads_fp8 else "bf16"
    found = None if seen is None else seen.precision
    return "bf16" if found == "fp16" else found
