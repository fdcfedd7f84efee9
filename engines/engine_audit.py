"""A built engine against what its graph promises: attentions that are fused, products that run in 8 bits.

TensorRT says in a log at most where it fell back to 16 bits, and a picture does not show it; its inspector does.

The form of the inspector's JSON is as NVIDIA documents it for an engine of DETAILED verbosity: {"Layers": [{"Name",
"LayerType", "TacticName", "Metadata", "Inputs": [{"Name", "Format/Datatype"}], …}]}, where "Metadata" holds "[ONNX
Layer: name]" of every node in a layer. How an engine of these graphs names its layers has not been seen on a machine:
kernels of fused attention are taken to be those with "mha" or "attention" in name, type or tactic, which published
profiles of TensorRT 10 have (`_gemm_mha_v2`).
"""

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from qwen_image_engine.engines.build_job import Promise
from qwen_image_engine.engines.errors import QwenImageError

_FUSED = re.compile(r"mha|attention", re.IGNORECASE)
_PRODUCT = re.compile(r"gemm|matmul", re.IGNORECASE)
_FP8 = re.compile(r"fp8|float8", re.IGNORECASE)
_INT8 = re.compile(r"\bint8", re.IGNORECASE)
_NODES = re.compile(r"\[ONNX Layer: ([^\]]*)\]")

_MOST_LISTED = 20


@dataclass(frozen=True)
class Network:
    """What the parser made of a graph.

    Attributes:
        attentions: names of those that must be fused.
        products: names of all matrix products.
    """

    attentions: Collection[str]
    products: Collection[str]


@dataclass(frozen=True)
class Audit:
    """What an engine has.

    Attributes:
        fused_attentions: attentions of the graph in fused kernels.
        fp8_products: products of the graph with inputs in FP8.
        int8_products: products with inputs in INT8.
        unfused: attentions that no fused kernel has.
        wide: layers that hold a product, none of whose inputs is in 8 bits.
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
    for layer in _layers(inspected):
        name = str(layer.get("Name", "?"))
        words = " ".join(str(layer.get(key, "")) for key in ("Name", "LayerType", "TacticName"))
        nodes = set(_NODES.findall(str(layer.get("Metadata", ""))))
        if _FUSED.search(words):
            fused |= nodes.intersection(network.attentions) if nodes else {name}
            continue
        products = nodes.intersection(network.products) or ({name} if not nodes and _PRODUCT.search(words) else set())
        if not products:
            continue
        types = " ".join(_type(value) for value in layer.get("Inputs", ()))
        if _FP8.search(types):
            fp8 |= products
        elif _INT8.search(types):
            int8 |= products
        else:
            wide.append(name)
    named = fused.intersection(network.attentions)
    unfused = tuple(sorted(set(network.attentions) - named)) if named or not fused else ()
    return Audit(len(fused), len(fp8), len(int8), unfused, tuple(wide))


def check_audit(component: str, found: Audit, network: Network, promise: Promise) -> None:
    """Refuse an engine that has less than its graph promises.

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
            f"{component}: the engine is not what its graph promises: {'. '.join(faults)}. It was not kept; "
            "export with --precision bf16, or report this with the GPU's name"
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


def _type(value: Any) -> str:
    """What the inspector says of a tensor, its name aside."""
    if not isinstance(value, Mapping):
        return ""
    return " ".join(str(item) for key, item in value.items() if key != "Name")


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_MOST_LISTED]) or "no names given"
    return shown + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")
