"""The compiler's account of a plan in a few numbers by profile, read from the file beside the plan alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from qwen_image_engine.engines.core.errors import one_line
from qwen_image_engine.engines.tensorrt.build.account import Names, names_of_file, other_form
from qwen_image_engine.engines.tensorrt.build.audit import attention_kernels, product_kernels, products_of
from qwen_image_engine.engines.tensorrt.build.inspector import EngineLayer, engine_layers

HEADINGS = ("profile", "kernels", "attentions fused", "of them FP8", "products", "not fused", "not in 8 bits")
UNKNOWN = "unknown"
_MOST_LISTED = 5


@dataclass(frozen=True)
class ProfileSummary:
    """The account of one profile.

    Attributes:
        profile: name of the profile.
        kernels: number of kernels.
        attentions: number of attentions of the graph.
        fused_attentions: number of them that run in fused kernels.
        fp8_attentions: number of fused attentions whose kernels read FP8.
        products: number of products by the precision of their wider operand, `UNKNOWN` where the account does not tell.
        unfused: names of the attentions that do not run in fused kernels.
        wide: names of the products that read codes in the graph and no 8-bit operands in the plan.
    """

    profile: str
    kernels: int
    attentions: int
    fused_attentions: int
    fp8_attentions: int
    products: Mapping[str, int]
    unfused: tuple[str, ...]
    wide: tuple[str, ...]

    def row(self) -> tuple[str, ...]:
        """Return the cells below `HEADINGS`."""
        products = ", ".join(f"{count} {precision}" for precision, count in sorted(self.products.items()))
        fused = f"{self.fused_attentions} of {self.attentions}"
        names = (_listed(self.unfused), _listed(self.wide))
        return (self.profile, str(self.kernels), fused, str(self.fp8_attentions), products or "none", *names)


def summary(text: str) -> tuple[ProfileSummary, ...]:
    """Return the account by profile, in the order in which the plan numbers them.

    Args:
        text: contents of the file beside a plan.

    Raises:
        QwenImageError: the text has another form.
    """
    names = names_of_file(text)
    try:
        layers = [*engine_layers(text, {*names.attentions, *names.products})]
    except (AttributeError, TypeError, ValueError) as error:  # a file from others may hold anything
        raise other_form(f"a layer with {one_line(error)}") from error
    return tuple(
        _summary(profile, [layer for layer in layers if layer.profile == index], names)
        for index, profile in enumerate(names.profiles)
    )


def _summary(profile: str, layers: Collection[EngineLayer], names: Names) -> ProfileSummary:
    attentions = attention_kernels(layers, names.attentions)
    fused = [name for name, kernels in attentions.items() if all(item.kind == "attention" for item in kernels)]
    products = product_kernels(layers, names.products)
    precisions = {name: _precision(kernels) for name, kernels in products.items()}
    return ProfileSummary(
        profile=profile,
        kernels=sum(layer.is_kernel for layer in layers),
        attentions=len(names.attentions),
        fused_attentions=len(fused),
        fp8_attentions=sum(all(item.reads_fp8 for item in attentions[name]) for name in fused),
        products=Counter(found for name, found in precisions.items() for _ in range(products_of(name))),
        unfused=tuple(name for name in names.attentions if name not in fused),
        wide=tuple(name for name in names.from_codes if precisions.get(name) not in ("fp8", "int8")),
    )


def _precision(kernels: Collection[EngineLayer]) -> str:
    """Return the precision of all kernels of a product, `UNKNOWN` if they differ or one is not known."""
    found = {item.precision for item in kernels}
    only = found.pop() if len(found) == 1 else None
    return only or UNKNOWN


def _listed(names: Collection[str]) -> str:
    shown = ", ".join([*names][:_MOST_LISTED])
    return shown + (f" and {len(names) - _MOST_LISTED} more" if len(names) > _MOST_LISTED else "")
