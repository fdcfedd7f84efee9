"""Checks that a built plan has the fused attention and the 8-bit products that its graph asks for.

A compiler reports a fallback to 16 bits at most in a log, and a picture does not show it. Its account of the layers
does (`engine_layers`). Every profile must keep the promise. Several layers may name one node: layers beside the kernel
that computes the node. All kernels of a product must be in 8 bits. No kernel of an attention may be a softmax alone.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.joined_products import JOINT
from qwen_image_engine.engines.tensorrt.build.account import Names
from qwen_image_engine.engines.tensorrt.build.inspector import Bits, EngineLayer, engine_layers
from qwen_image_engine.engines.tensorrt.build.job import ExpectedFusions

_MOST_LISTED = 20
_FUSED = "fused attentions"
_FP8_ATTENTION = "attentions in FP8"


@dataclass(frozen=True)
class Network:
    """The nodes of a graph as the parser made them.

    Attributes:
        attentions: names of the attentions that must be fused.
        products: names of all matrix products.
        nodes: names of all nodes that the parser made layers of.
        from_codes: names of the products that read dequantised codes.
        fp8_attentions: names of the attentions that were told to read codes.
        other_attentions: names of the attentions that may run unfused.
    """

    attentions: Collection[str]
    products: Collection[str]
    nodes: Collection[str] = ()
    from_codes: Collection[str] = ()
    fp8_attentions: Collection[str] = ()
    other_attentions: Collection[str] = ()

    def names(self, profiles: tuple[str, ...]) -> Names:
        """Return the names for the file beside a plan with these profiles."""
        attentions = (*self.attentions, *self.other_attentions)
        return Names(profiles, attentions, tuple(self.products), tuple(self.from_codes))


@dataclass(frozen=True)
class Audit:
    """The fused attentions and 8-bit products counted in one profile of a plan.

    Attributes:
        fused_attentions: number of the graph's attentions in fused kernels.
        fp8_attentions: number of fused attentions whose kernels read FP8.
        fp8_products: number of the graph's products with both operands in FP8.
        int8_products: number of the graph's products with both operands in INT8.
        unfused: names of attentions without a fused kernel.
        wide_attentions: names of fused attentions with a kernel that does not read FP8 alone.
        wide: names of products with an operand that is not in 8 bits.
    """

    fused_attentions: int
    fp8_attentions: int
    fp8_products: int
    int8_products: int
    unfused: tuple[str, ...]
    wide_attentions: tuple[str, ...]
    wide: tuple[str, ...]


def audit(inspected: str, network: Network, profiles: int) -> tuple[Audit, ...]:
    """Count attentions and products by profile in the account `inspected` of a whole engine.

    If no layer of a profile names a node of a kind, layers are counted instead of nodes.

    Args:
        inspected: the account, as the inspector's JSON.
        network: nodes of the parsed graph.
        profiles: number of profiles of the engine.

    Raises:
        QwenImageError: `inspected` is not in the expected format, or has layers of more or fewer profiles.
    """
    layers = [*engine_layers(inspected, {*network.attentions, *network.products, *network.nodes})]
    found = {layer.profile for layer in layers}
    if found != {*range(profiles)}:
        raise QwenImageError(
            f"the compiler's account has layers of the profiles {sorted(found)}, expected all of {profiles}; the "
            "engine's fusions cannot be checked, so it was not kept; report this with the compiler's version"
        )
    return tuple(
        _audit([layer for layer in layers if layer.profile == profile], network) for profile in range(profiles)
    )


def _audit(layers: Collection[EngineLayer], network: Network) -> Audit:
    attentions = attention_kernels(layers, network.attentions)
    fused = sorted(name for name, kernels in attentions.items() if all(item.kind == "attention" for item in kernels))
    wide_attentions = [name for name in fused if not all(item.reads_fp8 for item in attentions[name])]
    named = not attentions.keys().isdisjoint(network.attentions)
    bits = {name: _bits(kernels) for name, kernels in sorted(product_kernels(layers, network.products).items())}
    return Audit(
        fused_attentions=len(fused),
        fp8_attentions=len(fused) - len(wide_attentions),
        fp8_products=sum(products_of(name) for name, found in bits.items() if found == "fp8"),
        int8_products=sum(products_of(name) for name, found in bits.items() if found == "int8"),
        unfused=tuple(sorted(set(network.attentions).difference(fused)) if named or not fused else ()),
        wide_attentions=tuple(wide_attentions),
        wide=tuple(name for name, found in bits.items() if found is None),
    )


def products_of(name: str) -> int:
    """Return the number of the graph's products that a node of the parsed graph stands for."""
    return 1 + name.count(JOINT)


def _bits(kernels: Collection[EngineLayer]) -> Bits | None:
    """Return the 8-bit format that all kernels of a product read; None if one reads another or a wider."""
    found = {item.bits for item in kernels}
    return found.pop() if len(found) == 1 else None


def check_parsed(component: str, network: Network, promise: ExpectedFusions) -> None:
    """Raise if the parsed graph lacks attentions that its plan must fuse or run in FP8, before the long build.

    Raises:
        QwenImageError: some attentions were parsed as other layers, have a mask, or do not read FP8.
    """
    missing = sorted(set(promise.attentions).difference(network.attentions))
    if missing:
        whole, wanted = len(promise.attentions) - len(missing), len(promise.attentions)
        raise QwenImageError(
            f"{component}: the parser made {whole} attention layers without a mask of the graph's {wanted} that must "
            f"be fused; none of: {_listed(missing)}. Unfused they would hold tokens * tokens * heads numbers; report "
            "this with the compiler's version"
        )
    if len(network.fp8_attentions) < promise.fp8_attention:
        raise QwenImageError(
            f"{component}: {len(network.fp8_attentions)} attentions read FP8 in the parsed graph, expected at least "
            f"{promise.fp8_attention}; export without --fp8-attention"
        )


def check_audit(
    component: str,
    found: Mapping[str, Audit],
    network: Network,
    promise: ExpectedFusions,
    layers: Path | None = None,
) -> None:
    """Raise if a profile of a plan has fewer fused attentions or 8-bit products than its graph promises.

    Args:
        component: name of the component.
        found: counts by name of the profile.
        network: nodes of the parsed graph.
        promise: counts that the graph promises.
        layers: file with the account; None if there is none.

    Raises:
        QwenImageError: a count of a profile is less than promised. The text lists the layers.
    """
    where: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for profile, counts in found.items():
        for fault in _faults(counts, network, promise):
            where[fault].append(profile)
    if where:
        texts = [f"{_profiles(names, len(found))}{text}" for (_, text), names in where.items()]
        of_attention = promise.fp8_attention and {kind for kind, _ in where} <= {_FUSED, _FP8_ATTENTION}
        instead = "without --fp8-attention" if of_attention else "with --precision bf16"
        raise QwenImageError(
            f"{component}: the engine is not what its graph promises: {'. '.join(texts)}. It was not kept; export "
            f"{instead}, or report this with the names of GPU and compiler{f' and {layers}' if layers else ''}"
        )


def _faults(found: Audit, network: Network, promise: ExpectedFusions) -> Iterator[tuple[str, str]]:
    """Yield the kind of each count that is less than promised, and its text."""
    wider = "in a higher precision"
    wide = [name for name in found.wide if name in network.from_codes] or found.wide
    wide_attentions = [
        name for name in found.wide_attentions if name in network.fp8_attentions
    ] or found.wide_attentions
    for kind, count, wanted, words, names in (
        (_FUSED, found.fused_attentions, len(promise.attentions), "not fused", found.unfused),
        (_FP8_ATTENTION, found.fp8_attentions, promise.fp8_attention, wider, wide_attentions),
        ("products in FP8", found.fp8_products, promise.fp8_products, wider, wide),
        ("products in INT8", found.int8_products, promise.int8_products, wider, wide),
    ):
        if count < wanted:
            yield kind, f"{count} {kind} of {wanted}; {words}: {_listed(names)}"


def _profiles(names: Collection[str], of: int) -> str:
    return "" if len(names) == of else f"profile {', '.join(names)}: "


def attention_kernels(layers: Collection[EngineLayer], names: Collection[str]) -> dict[str, list[EngineLayer]]:
    """Return the kernels of each attention: fused kernels, and kernels of a softmax alone."""
    found = _by_name((layer for layer in layers if layer.kind == "attention"), names, unnamed=True)
    for name, apart in _by_name((layer for layer in layers if layer.kind == "softmax"), names).items():
        found[name] += apart
    return _named(found, names)


def product_kernels(layers: Collection[EngineLayer], names: Collection[str]) -> dict[str, list[EngineLayer]]:
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
