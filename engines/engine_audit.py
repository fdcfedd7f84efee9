"""A built engine against what its graph promises: attentions that are fused, products that run in 8 bits.

TensorRT says in a log at most where it fell back to 16 bits, and a picture does not show it; its inspector does.

The form of the inspector's JSON is as NVIDIA documents it for an engine of DETAILED verbosity: {"Layers": [{"Name",
"LayerType", "TacticName", "Metadata", "Inputs": [{"Name", "Format/Datatype"}], …}]}, where "Metadata" holds "[ONNX
Layer: name]" of every node in a layer. How an engine of these graphs names its layers has not been seen on a machine:
kernels of fused attention are taken to be those with "mha" or "attention" in type or tactic, or in what is left of the
name without the names of nodes ("Attention_48" is one), which published profiles of TensorRT 10 have (`_gemm_mha_v2`).

A product runs in 8 bits where both operands do: a kernel that widens FP8 weights for activations in bf16 does not.
Inputs of one axis (bias, scales) may be wider, and so may one of the output's shape (what is added to it) where there
are more inputs in 8 bits than products. Weights inside a layer are no input of it.
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.build_job import Promise
from qwen_image_engine.engines.errors import QwenImageError

_FUSED = re.compile(r"mha|attention", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|matmul", re.IGNORECASE)
_FP8 = re.compile(r"fp8|float8", re.IGNORECASE)
_INT8 = re.compile(r"\bint8", re.IGNORECASE)
_WIDE = re.compile(r"bf16|bfloat16|fp16|half|float16|fp32|float32|tf32|\bfloat\b", re.IGNORECASE)
_NODES = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

_MOST_LISTED = 20


@dataclass(frozen=True)
class Network:
    """What the parser made of a graph.

    Attributes:
        attentions: names of those that must be fused.
        products: names of all matrix products.
        nodes: names of all other nodes that it made layers of.
    """

    attentions: Collection[str]
    products: Collection[str]
    nodes: Collection[str] = ()


@dataclass(frozen=True)
class Audit:
    """What an engine has.

    Attributes:
        fused_attentions: attentions of the graph in fused kernels.
        fp8_products: products of the graph with both operands in FP8.
        int8_products: products with both operands in INT8.
        unfused: attentions that no fused kernel has.
        wide: layers that hold a product with an operand that is not in 8 bits.
    """

    fused_attentions: int
    fp8_products: int
    int8_products: int
    unfused: tuple[str, ...]
    wide: tuple[str, ...]


def audit(inspected: str, network: Network) -> Audit:
    """Count in the inspector's JSON `inspected` of a whole engine.

    A layer without names of nodes counts as one.

    Raises:
        QwenImageError: it is not of the documented form.
    """
    fused: set[str] = set()
    fp8: set[str] = set()
    int8: set[str] = set()
    wide: list[str] = []
    known = _any_of({*network.attentions, *network.products, *network.nodes})
    for layer in _layers(inspected):
        name = str(layer.get("Name", "?"))
        nodes = {*_NODES.findall(str(layer.get("Metadata", ""))), *known.findall(name)}
        words = " ".join((known.sub("", name), *(str(layer.get(key, "")) for key in ("LayerType", "TacticName"))))
        in_kernel = bool(_FUSED.search(words))
        if in_kernel:
            fused |= nodes.intersection(network.attentions) if nodes else {name}
        unnamed = not nodes and not in_kernel and _PRODUCT.search(words)
        products = {name} if unnamed else nodes.intersection(network.products)
        kind = _kind(layer, len(products))
        if kind is _FP8:
            fp8 |= products
        elif kind is _INT8:
            int8 |= products
        elif products:
            wide.append(name)
    named = fused.intersection(network.attentions)
    unfused = tuple(sorted(set(network.attentions) - named)) if named or not fused else ()
    return Audit(len(fused), len(fp8), len(int8), unfused, tuple(wide))


def check_parsed(component: str, network: Network, promise: Promise) -> None:
    """Refuse a parsed graph without the attentions that its engine is to fuse, before the long build.

    Raises:
        QwenImageError: some were parsed as other layers; the text lists them.
    """
    missing = sorted(set(promise.attentions).difference(network.attentions))
    if missing:
        raise QwenImageError(
            f"{component}: TensorRT's parser made {len(promise.attentions) - len(missing)} attention layers of the "
            f"graph's {len(promise.attentions)} that must be fused; none of: {_listed(missing)}. Unfused they would "
            "hold tokens * tokens * heads numbers; report this with the version of TensorRT"
        )


def check_audit(component: str, found: Audit, network: Network, promise: Promise, layers: Path | None = None) -> None:
    """Refuse an engine that has less than its graph promises.

    Args:
        component: its name.
        found: in the engine.
        network: as parsed.
        promise: of the graph.
        layers: file with the inspector's JSON, None where there is none.

    Raises:
        QwenImageError: so it has; the text lists the layers.
    """
    faults = [
        f"{count} {what} of {wanted}; {words}: {_listed(names)}"
        for count, wanted, what, words, names in (
            (found.fused_attentions, len(network.attentions), "fused attentions", "not fused", found.unfused),
            (found.fp8_products, promise.fp8_products, "products in FP8", "in a higher precision", found.wide),
            (found.int8_products, promise.int8_products, "products in INT8", "in a higher precision", found.wide),
        )
        if count < wanted
    ]
    if faults:
        raise QwenImageError(
            f"{component}: the engine is not what its graph promises: {'. '.join(faults)}. It was not kept; export "
            f"with --precision bf16, or report this with the GPU's name{f' and {layers}' if layers is not None else ''}"
        )


def _layers(inspected: str) -> list[Mapping[str, Any]]:
    try:
        layers = json.loads(inspected)["Layers"]
    except (ValueError, KeyError, TypeError):
        layers = None
    if not isinstance(layers, list) or not all(isinstance(layer, Mapping) for layer in layers):
        raise QwenImageError(
            'TensorRT\'s inspector gives another form than documented, with no list of objects under "Layers"; the '
            "engine's fusions cannot be checked, so it was not kept"
        )
    return layers


def _any_of(names: Collection[str]) -> re.Pattern[str]:
    """Any of the names, whole: "Gemm_5" is not in "Gemm_50"."""
    longest = sorted(filter(None, names), key=len, reverse=True)
    return re.compile(rf"(?:{'|'.join(map(re.escape, longest))})(?!\d)" if longest else r"(?!)")


def _kind(layer: Mapping[str, Any], products: int) -> re.Pattern[str] | None:
    """The 8 bits that a layer of so many products multiplies in, None where an operand has more."""
    inputs = [value for value in layer.get("Inputs", ()) if isinstance(value, Mapping)]
    outputs = [_axes(value) for value in layer.get("Outputs", ()) if isinstance(value, Mapping)]
    types = [_type(value) for value in inputs]
    for kind in (_FP8, _INT8):
        operands = sum(bool(kind.search(words)) for words in types)
        if not operands:
            continue
        wide = [_axes(value) for value, words in zip(inputs, types, strict=True) if _WIDE.search(words)]
        added = outputs if operands > products else []
        return kind if all(axes in added or _is_row(axes) for axes in wide) else None
    return None


def _axes(value: Mapping[str, Any]) -> tuple[Any, ...] | None:
    """Of a tensor, as the inspector has them; None where it has none."""
    axes = value.get("Dimensions")
    return tuple(axes) if isinstance(axes, list) else None


def _is_row(axes: tuple[Any, ...] | None) -> bool:
    """Whether a tensor has one axis at most, axes of 1 aside."""
    return axes is not None and sum(axis != 1 for axis in axes) <= 1


def _type(value: Mapping[str, Any]) -> str:
    """What the inspector says of a tensor, its name aside."""
    return " ".join(str(item) for key, item in value.items() if key != "Name")


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_MOST_LISTED]) or "no names given"
    return shown + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")
