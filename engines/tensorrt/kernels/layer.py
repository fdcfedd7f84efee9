"""The layers of an account with checked tensors, and the words that a layer's tactic and metadata have for its work."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

from qwen_image_engine.engines.core.errors import one_line
from qwen_image_engine.engines.tensorrt.build.account import Names, listed_layers, names_of_file, other_form
from qwen_image_engine.engines.tensorrt.build.inspector import (
    EngineLayer,
    engine_layers,
    is_copy,
    layer_profiles,
    node_names,
)

OPEN = -1
"""Dimension of an axis that the profile leaves open."""

_LARGEST = 1 << 40
_MOST_TENSORS = 256
"""Most inputs, constants or outputs of a layer that is read. The largest layer of a step has 15."""
_PROFILE = re.compile(r" \[profile \d+\]$")
_FUSION = re.compile(r"__myl_((?:[A-Z][a-z0-9]*)+)")
_WORD = re.compile(r"[A-Z][a-z0-9]*")
_NUMBER = re.compile(r"_\d+$")

_BITS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), bits)
    for pattern, bits in (
        (r"fp4|e2m1|\bu?int4", 4),
        (r"fp8|float8|e4m3|e5m2|e8m0|\bu?int8|\bbool", 8),
        (r"bfloat16|bf16|\bhalf\b|fp16|\bfloat16", 16),
        (r"\bu?int64|\bfloat64|\bdouble", 64),
        (r"\bfloat\b|fp32|float32|\bu?int32", 32),
    )
)
"""Bits of an element by the words that accounts have for its type; the first that fits."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of a layer: a whole tensor, or a part of one.

    Attributes:
        name: name, without the mark of the profile.
        dims: dimensions; `OPEN` where the profile leaves an axis open.
        strides: strides in elements, `OPEN` where not known; empty if the account has none.
        dtype: words for the type, "BFloat16".
        bits: bits of an element; None if the words are not known.
    """

    name: str
    dims: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str
    bits: int | None

    @property
    def closed(self) -> int:
        """Elements for one index of each open axis."""
        return prod(size for size in self.dims if size != OPEN)

    @property
    def is_open(self) -> bool:
        """Whether an axis is open."""
        return OPEN in self.dims

    @property
    def is_matrix(self) -> bool:
        """Whether more than one of the axes, all of them closed, has more than one index."""
        return not self.is_open and sum(size > 1 for size in self.dims) > 1

    @property
    def row(self) -> int:
        """Elements of the underlying tensor for one index of the innermost open axis; more than `closed` in a part."""
        steps = [step for size, step in zip(self.dims, self.strides, strict=False) if size == OPEN and step > 0]
        return max(self.closed, min(steps, default=0), 1)


@dataclass(frozen=True)
class Layer:
    """A kernel of a plan as the account has it.

    Attributes:
        seen: the layer as the audit sees it; None for a layer that only copies between formats.
        name: name of the layer.
        profile: index of the profile.
        nodes: names of the graph's nodes in the metadata.
        type: type of the layer in the account, "gemm".
        words: words of the tactic for what a generated kernel does, in order: "Silu", "Mul"; empty if it has none.
        inputs: activations, weights that are inputs, and numbers from the host.
        constants: weights, scales and other constants.
        outputs: outputs.
    """

    seen: EngineLayer | None
    name: str
    profile: int
    nodes: tuple[str, ...]
    type: str
    words: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    constants: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def operators(self) -> frozenset[str]:
        """Operators of the nodes, as far as the nodes are named after them: "Concat" of "Concat_97"."""
        return frozenset(_NUMBER.sub("", node.rpartition("/")[2]) for node in self.nodes)

    @property
    def joins(self) -> bool:
        """Whether the kernel concatenates."""
        return "Conc" in self.words or "Concat" in self.operators


def read_layers(text: str) -> tuple[Names, tuple[Layer, ...]]:
    """Return the names and the kernels of the file beside a plan, in the order in which the plan runs them.

    Raises:
        QwenImageError: the text has another form.
    """
    names = names_of_file(text)
    try:
        raw = listed_layers(text)
        seen = engine_layers(text, {*names.attentions, *names.products})
        layers = []
        for item, profile in zip(raw, layer_profiles(raw), strict=True):
            found = None if is_copy(item) else next(seen)
            if found is None or found.is_kernel:
                layers.append(_layer(item, profile, found))
        return names, tuple(layers)
    except (AttributeError, TypeError, ValueError, KeyError, OverflowError) as error:  # others may write anything
        raise other_form(f"a layer with {one_line(error)}") from error


def _layer(item: Mapping[str, Any], profile: int, seen: EngineLayer | None) -> Layer:
    name, tactic = str(item.get("Name", "?")), str(item.get("TacticName", ""))
    fusion = _FUSION.search(tactic) or _FUSION.search(name)
    return Layer(
        seen=seen,
        name=name,
        profile=profile,
        nodes=tuple(node_names(str(item.get("Metadata", "")))),
        type=str(item.get("LayerType", "")),
        words=tuple(_WORD.findall(fusion.group(1))) if fusion else (),
        inputs=_tensors(item.get("Inputs", ())),
        constants=_tensors(item.get("Constants", ())),
        outputs=_tensors(item.get("Outputs", ())),
    )


def _tensors(values: Collection[Any]) -> tuple[Tensor, ...]:
    if len(values) > _MOST_TENSORS:
        raise ValueError(f"{len(values)} tensors")
    return tuple(_tensor(value) for value in values if isinstance(value, Mapping))


def _tensor(value: Mapping[str, Any]) -> Tensor:
    words = " ".join(str(value.get(key, "")) for key in ("Datatype", "Format/Datatype")).strip()
    bits = next((bits for pattern, bits in _BITS if pattern.search(words)), None)
    dims, strides = _numbers(value.get("Dimensions", ())), _numbers(value.get("Strides", ()))
    return Tensor(_PROFILE.sub("", str(value.get("Name", ""))), dims, strides, words, bits)


def _numbers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list | tuple) or len(values) > 16:
        raise ValueError(f"dimensions {str(values)[:40]!r}")
    for value in values:
        if type(value) is not int or not OPEN <= value <= _LARGEST:
            raise ValueError(f"the dimension {str(value)[:40]!r}")
    return tuple(values)
