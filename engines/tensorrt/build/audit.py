"""Checks that a built plan has the fused attention and the 8-bit products that its graph asks for.

TensorRT reports a fallback to 16 bits at most in a log, and a picture does not show it. The inspector does
(`engine_layers`). Several layers may name one node: layers of several profiles, or layers beside the kernel that
computes the node. All kernels of a product must be in 8 bits. No kernel of an attention may be a softmax alone.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.build.inspector import EngineLayer, engine_layers
from qwen_image_engine.engines.tensorrt.build.job import ExpectedFusions

_MOST_LISTED = 20
_FP8_ATTENTION = "attentions in FP8"


@dataclass(frozen=True)
class Network:
    """The nodes of a graph as the parser made them.

    Attributes:
        attentions: names of the attentions that must be fused.
        products: names of all matrix products.
        nodes: names of all nodes that the parser made layers of.
    """

    attentions: Collection[str]
    products: Collection[str]
    nodes: Collection[str] = ()


@dataclass(frozen=True)
class Audit:
    """The fused attentions and 8-bit products counted in a plan.

    Attributes:
        fused_attentions: number of the graph's attentions in fused kernels.
        fp8_attentions: number of fused attentions whose kernels read FP8.
        fp8_products: number of the graph's products with both operands in FP8.
        int8_products: number of the graph's products with both operands in INT8.
        unfused: names of attentions without a fused kernel.
        wide_attentions: names of fused attentions with a kernel that reads no FP8.
        wide: names of layers that hold a product with an operand that is not in 8 bits.
    """

    fused_attentions: int
    fp8_attentions: int
    fp8_products: int
    int8_products: int
    unfused: tuple[str, ...]
    wide_attentions: tuple[str, ...]
    wide: tuple[str, ...]


def audit(inspected: str, network: Network) -> Audit:
    """Count attentions and products in the inspector's JSON `inspected` of a whole engine.

    If no layer names a node of a kind, layers are counted instead of nodes.

    Raises:
        QwenImageError: `inspected` is not in the expected format.
    """
    layers = [*engine_layers(inspected, {*network.attentions, *network.products, *network.nodes})]
    attentions = _attentions(layers, network.attentions)
    fused = sorted(name for name, kernels in attentions.items() if all(item.kind == "attention" for item in kernels))
    wide_attentions = [name for name in fused if not all(item.reads_fp8 for item in attentions[name])]
    named = not attentions.keys().isdisjoint(network.attentions)
    unfused = sorted(set(network.attentions).difference(fused)) if named or not fused else []
    bits = defaultdict(list)
    wide: dict[str, None] = {}
    for name, kernels in sorted(_products(layers, network.products).items()):
        found = {item.bits for item in kernels}
        bits[found.pop() if len(found) == 1 else None].append(name)
        wide |= dict.fromkeys(item.name for item in kernels if item.bits is None)
    return Audit(
        fused_attentions=len(fused),
        fp8_attentions=len(fused) - len(wide_attentions),
        fp8_products=len(bits["fp8"]),
        int8_products=len(bits["int8"]),
        unfused=tuple(unfused),
        wide_attentions=tuple(wide_attentions),
        wide=tuple(wide),
    )


def check_parsed(component: str, network: Network, promise: ExpectedFusions) -> None:
    """Raise if the parsed graph lacks attentions that its plan must fuse. The check comes before the long build.

    Raises:
        QwenImageError: some attentions were parsed as other layers. The text lists them.
    """
    missing = sorted(set(promise.attentions).difference(network.attentions))
    if missing:
        raise QwenImageError(
            f"{component}: TensorRT's parser made {len(promise.attentions) - len(missing)} attention layers of the "
            f"graph's {len(promise.attentions)} that must be fused; none of: {_listed(missing)}. Unfused they would "
            "hold tokens * tokens * heads numbers; report this with the version of TensorRT"
        )


def check_audit(
    component: str, found: Audit, network: Network, promise: ExpectedFusions, layers: Path | None = None
) -> None:
    """Raise if a plan has fewer fused attentions or 8-bit products than its graph promises.

    Args:
        component: name of the component.
        found: counts of the plan.
        network: nodes of the parsed graph.
        promise: counts that the graph promises.
        layers: file with the inspector's JSON; None if there is none.

    Raises:
        QwenImageError: a count of the plan is less than promised. The text lists the layers.
    """
    wider = "in a higher precision"
    faults = {
        what: f"{count} {what} of {wanted}; {words}: {_listed(names)}"
        for what, count, wanted, words, names in (
            ("fused attentions", found.fused_attentions, len(network.attentions), "not fused", found.unfused),
            (_FP8_ATTENTION, found.fp8_attentions, promise.fp8_attention, wider, found.wide_attentions),
            ("products in FP8", found.fp8_products, promise.fp8_products, wider, found.wide),
            ("products in INT8", found.int8_products, promise.int8_products, wider, found.wide),
        )
        if count < wanted
    }
    if faults:
        instead = "without --fp8-attention" if [*faults] == [_FP8_ATTENTION] else "with --precision bf16"
        raise QwenImageError(
            f"{component}: the engine is not what its graph promises: {'. '.join(faults.values())}. It was not kept; "
            f"export {instead}, or report this with the GPU's name{f' and {layers}' if layers is not None else ''}"
        )


def _attentions(layers: Collection[EngineLayer], names: Collection[str]) -> dict[str, list[EngineLayer]]:
    """Return the kernels of each attention: fused kernels, and kernels of a softmax alone."""
    found = _by_name((layer for layer in layers if layer.kind == "attention"), names, unnamed=True)
    for name, apart in _by_name((layer for layer in layers if layer.kind == "softmax"), names).items():
        found[name] += apart
    return _named(found, names)


def _products(layers: Collection[EngineLayer], names: Collection[str]) -> dict[str, list[EngineLayer]]:
    """Return the kernels of each product. If no product kernel names a product, return the other layers that name it.

    Of these other layers only the ones in 8 bits count, if there are any: the rest quantise or widen.
    """
    found = _by_name((layer for layer in layers if layer.kind == "product"), names, unnamed=True)
    for name, others in _by_name((layer for layer in layers if layer.kind != "product"), names).items():
        if name not in found:
            found[name] = [layer for layer in others if layer.bits is not None] or others
    return _named(found, names)


def _by_name(
    layers: Iterable[EngineLayer], names: Collection[str], *, unnamed: bool = False
) -> defaultdict[str, list[EngineLayer]]:
    """Group layers by the names in `names` that they name.

    With `unnamed`, a layer that names no node is grouped under its own name.
    """
    found = defaultdict(list)
    for layer in layers:
        for name in layer.nodes.intersection(names) if layer.nodes or not unnamed else (layer.name,):
            found[name].append(layer)
    return found


def _named(found: dict[str, list[EngineLayer]], names: Collection[str]) -> dict[str, list[EngineLayer]]:
    """Return the groups under names of nodes if there are any, and all groups otherwise.

    If any layer names a node, a layer that names none is a part of such a node.
    """
    of_nodes = {name: layers for name, layers in found.items() if name in names}
    return of_nodes or found


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_MOST_LISTED]) or "no names given"
    return shown + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")
