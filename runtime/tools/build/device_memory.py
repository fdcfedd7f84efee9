"""The device memory of a model's plans for a picture, by the way to hold them.

Bytes of plans that are not built, and scratch memory, are estimates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.core.graph.weight_bytes import weight_bytes
from qwen_image_engine.engines.plans.bound_weight import BoundWeight
from qwen_image_engine.engines.plans.cards import Card
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.engines.plans.memory import port_bytes
from qwen_image_engine.engines.plans.profile import Range, profile
from qwen_image_engine.engines.plans.scratch import scratch_bytes
from qwen_image_engine.engines.tensorrt.package import TENSORRT_RTX
from qwen_image_engine.runtime.bundle.bound_lists import bindable_weights, bound_bytes, bound_count
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION, latent_size
from qwen_image_engine.runtime.model.tiles import spans
from qwen_image_engine.runtime.text.prompt import USUAL_PROMPT_TOKENS
from qwen_image_engine.runtime.tools.build.shapes import usual_profiles

SIDES = (512, 1024, 1536, 2048)
"""Sides of the square pictures whose fit is told [pixels]."""

WAYS = ("resident", "in turns", "sequential", "streaming")
"""Ways to hold plans, the fastest first: every plan; every plan, but prefix and step in turns; one at a time; one at a
time with the weights of plans that are built with `--weight-streaming` coming from the host in every run."""

_CODE_SHARE, _CODE_BYTES = 0.01, 10_000_000
"""Estimate of a plan's code and padding beside the weights inside it: 1% of them, because both grow with the blocks
(benchmarks/results/build-memory.json)."""

_BOUND_CODE_BYTES, _OF_A_BOUND_WEIGHT = 2_000_000, 130_000
"""Estimate of the code of a plan with bound weights: so much for every profile and every weight, which stands for a
product and the kernels around it (benchmarks/results/full-size-build.json)."""


@dataclass(frozen=True)
class PlanSize:
    """The size of a plan, and of the weights that it reads.

    Attributes:
        name: name of the plan, which is its component's; "vae" for all plans of the VAE where one size stands for them.
        components: components whose graphs are in it.
        bytes: bytes of the plan.
        weight_bytes: bytes of the weights among them.
        built: whether the plan is there; otherwise `bytes` is an estimate.
        bound: bytes of the weights that the plan takes as inputs, by place. Plans share those of one place.
        bound_weights: number of weights of the graph among them, of which one place may hold several.
    """

    name: str
    components: tuple[str, ...]
    bytes: int
    weight_bytes: int
    built: bool = False
    bound: Mapping[str, int] = field(default_factory=dict)
    bound_weights: int = 0

    @classmethod
    def estimated(
        cls,
        name: str,
        components: Sequence[str],
        weight_bytes: int,
        bound: Mapping[str, int] | None = None,
        bound_weights: int = 0,
    ) -> PlanSize:
        """Return the estimate for a plan that is not built, with `weight_bytes` inside and `bound` beside it."""
        bound = bound or {}
        if bound:
            profiles = max(map(usual_profiles, components))
            code = _BOUND_CODE_BYTES + _OF_A_BOUND_WEIGHT * bound_weights * profiles
        else:
            code = int(_CODE_SHARE * weight_bytes) + _CODE_BYTES
        return cls(name, tuple(components), weight_bytes + code, weight_bytes, False, bound, bound_weights)

    @property
    def bound_bytes(self) -> int:
        """Bytes of the weights that the plan takes as inputs."""
        return sum(self.bound.values())

    @property
    def of_transformer(self) -> bool:
        """Whether the plan has the transformer's weights."""
        return COMPONENTS[self.components[0]].network == "transformer"


@dataclass(frozen=True)
class Model:
    """The plans of a model, and what their memory depends on.

    Attributes:
        plans: sizes of the plans.
        contracts: contracts of all components of the plans.
        precision: precision of the export, which decides the cards that take the plans.
        halo: latents around a tile of the decoder.
    """

    plans: tuple[PlanSize, ...]
    contracts: Mapping[str, Contract]
    precision: str
    halo: int

    @property
    def bound_bytes(self) -> int:
        """Bytes of the weights that plans take as inputs, those of several plans once."""
        return shared_bytes(self.plans)


def shared_bytes(plans: Sequence[PlanSize]) -> int:
    """Return the bytes of the weights that plans take as inputs, those of one place once."""
    return sum({place: size for plan in plans for place, size in plan.bound.items()}.values())


@dataclass(frozen=True)
class Need:
    """The device memory of a picture [bytes].

    Attributes:
        side: side of the square picture [pixels].
        cache_bytes: keys and values.
        scratch_bytes: activations of the component that takes most.
        ways: bytes by way to hold the plans, of `WAYS`.
    """

    side: int
    cache_bytes: int
    scratch_bytes: int
    ways: Mapping[str, int]


def model_of_bundle(folder: Path, manifest: Manifest, builder: str, card: Card | None = None) -> Model:
    """Return the sizes of a bundle's plans of `builder`, estimates for those that are not built for a card.

    Estimates are of plans as `build` makes them by default. `card` is the card whose plans count;
    None for the first of each component.

    Raises:
        OSError: a graph cannot be read.
    """
    plans = []
    for name, entry in manifest.components.items():
        weights = weight_bytes(folder / entry.model)
        found = [plan for plan in manifest.plans.get(name, ()) if plan.builder == builder and _is_for(plan, card)]
        if found:  # as `engines.plans.fit.choose_plan` chooses
            chosen = min(found, key=lambda plan: len(plan.compute_capabilities))
            size = manifest.files[chosen.file].bytes + (weights if chosen.stripped else 0)
            inside = weights - bound_bytes(chosen.bound)
            plans.append(
                PlanSize(name, (name,), size, inside, True, _by_place(chosen.bound), bound_count(chosen.bound))
            )
        else:
            bound = bindable_weights(folder, entry.model) if builder == TENSORRT_RTX.engine else ()
            inside = weights - bound_bytes(bound)
            plans.append(PlanSize.estimated(name, (name,), inside, _by_place(bound), bound_count(bound)))
    contracts = {name: entry.contract for name, entry in manifest.components.items()}
    return Model(tuple(plans), contracts, manifest.precision, manifest.facts.decoder_halo)


def _by_place(weights: Sequence[BoundWeight]) -> dict[str, int]:
    """Return bytes of weights by place. A weight that is a piece for one plan and whole for another has two."""
    return {
        "+".join(f"{piece.file}@{piece.offset}" for piece in weight.pieces): size_bytes(weight.shape, weight.dtype)
        for weight in weights
    }


def _is_for(plan: PlanEntry, card: Card | None) -> bool:
    return card is None or card.compute_capability in plan.compute_capabilities


def needs(
    model: Model, references: int = 0, resolution: int = DEFAULT_RESOLUTION, tokens: int = USUAL_PROMPT_TOKENS
) -> tuple[Need, ...]:
    """Return the device memory of a picture of each side of `SIDES`.

    Args:
        model: the plans.
        references: number of reference images of the picture, as squares.
        resolution: side of each of them [pixels].
        tokens: number of tokens of the prompt.
    """
    return tuple(_need(model, side, references, resolution, tokens) for side in SIDES)


def _need(model: Model, side: int, references: int, resolution: int, tokens: int) -> Need:
    taken = {name: not row.needs_reference_images or references > 0 for name, row in COMPONENTS.items()}
    plans = [plan for plan in model.plans if any(taken[name] for name in plan.components)]
    scratch, ports, cache = {}, {}, 0
    for name in (name for plan in plans for name in plan.components if taken[name]):
        axes = _axes(name, model.halo, side, references, resolution, tokens)
        contract = model.contracts[name]
        shapes = profile(contract, "picture", {axis: Range.of(size) for axis, size in axes.items()})
        scratch[name] = scratch_bytes(contract, axes, model.precision)
        ports[name] = port_bytes(_without_cache(contract), shapes)
        if name == "step":
            cache = sum(
                size_bytes(shapes.shapes[spec.name][2], spec.dtype) for spec in contract.inputs if spec.is_cache
            )
    working = {
        plan.name: cache + max(scratch[name] + ports[name] for name in plan.components if name in scratch)
        for plan in plans
    }
    held = sum(plan.bytes for plan in plans) + shared_bytes(plans)
    resident = held + cache + sum(ports.values()) + max(scratch.values())
    passes = [plan.bytes for plan in plans if plan.of_transformer]
    ways = (
        resident,
        resident - sum(passes) + max(passes, default=0),
        max(plan.bytes + plan.bound_bytes + working[plan.name] for plan in plans),
        max(plan.bytes - plan.weight_bytes + working[plan.name] for plan in plans),
    )
    return Need(side, cache, max(scratch.values()), dict(zip(WAYS, ways, strict=True)))


def _without_cache(contract: Contract) -> Contract:
    """Return a contract without the keys and values that the prefix and the step share.

    A reference image's own stay: they are copied behind those of the tokens before it.
    """
    return replace(
        contract,
        inputs=tuple(spec for spec in contract.inputs if not spec.is_cache),
        outputs=tuple(spec for spec in contract.outputs if not spec.is_cache or spec.name.startswith("own_")),
    )


def _axes(name: str, halo: int, side: int, references: int, resolution: int, tokens: int) -> dict[str, int]:
    """Return the sizes of a component's axes for a square picture after a prompt and reference images."""
    rows, columns = latent_size(side, side)
    own = resolution // 16
    image = own * own
    before = tokens + references * image
    axes = {
        "batch": 1,
        "tokens": rows * columns,
        "prefix": before,
        "image": image,
        "slots": image // 4,
        "text": tokens,
        "height": own,
        "width": own,
    }
    if name == "text_encoder":
        axes["text"] = tokens + references * image // 4
    elif name == "prefix":
        axes["prefix"] = tokens
    elif name == "joint":
        axes["tokens"] += references * image
    elif name == "vae_decoder_mid":
        axes |= {"height": rows, "width": columns}
    elif name == "vae_decoder_up":
        tile = max(span.read_stop - span.read_start for span in spans(rows, halo))
        axes |= {"height": tile, "width": tile}
    return axes
