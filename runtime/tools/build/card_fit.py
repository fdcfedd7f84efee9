"""The fit of a model's plans into the memory of cards: the fastest way to hold them, by picture, and what helps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from qwen_image_engine.engines.cuda.compute_capability import FP8, least_compute_capability
from qwen_image_engine.engines.plans.build_memory import build_memory_bytes
from qwen_image_engine.engines.plans.cards import Card
from qwen_image_engine.engines.plans.memory import SPARE
from qwen_image_engine.runtime.system.text import size_text, table
from qwen_image_engine.runtime.tools.build.device_memory import SIDES, WAYS, Model, Need, PlanSize

RESERVED_BYTES = 1_000_000_000
"""Estimate of what a driver, a context, its kernels and a desktop take of a card's memory."""


@dataclass(frozen=True)
class CardFit:
    """The fit of a model into a card.

    Attributes:
        card: the card.
        refused: why the card takes no plan of this precision; None if it does.
        ways: fastest way to hold the plans by side of the picture; None if the picture does not fit.
        largest: largest side by way; None if no picture fits.
        helps: what makes larger pictures or a faster way fit.
    """

    card: Card
    refused: str | None
    ways: Mapping[int, str | None]
    largest: Mapping[str, int | None]
    helps: tuple[str, ...]

    @property
    def largest_side(self) -> int | None:
        """Side of the largest picture that fits in any way [pixels]; None if no picture fits."""
        return max((side for side, way in self.ways.items() if way is not None), default=None)


def card_fit(model: Model, found: Sequence[Need], card: Card) -> CardFit:
    """Return the fit of a model into a card. `found` is what pictures need, of `needs`."""
    least, has = least_compute_capability({model.precision}), float(card.compute_capability)
    if least is not None and has < least:
        other = "bf16 or int8" if model.precision == "fp8" else "fp8"
        refused = f"{model.precision} needs compute capability {least}; export in {other}"
        return CardFit(card, refused, dict.fromkeys(SIDES), dict.fromkeys(WAYS), ())
    room = card.memory_bytes - RESERVED_BYTES
    streamed = room - card.memory_bytes // SPARE
    fits = {
        need.side: [way for way, taken in need.ways.items() if taken <= (streamed if way == WAYS[-1] else room)]
        for need in found
    }
    ways = {side: next(iter(fitting), None) for side, fitting in fits.items()}
    largest = {way: max((side for side, fitting in fits.items() if way in fitting), default=None) for way in WAYS}
    return CardFit(card, None, ways, largest, tuple(_helps(model, ways, has)))


def _helps(model: Model, ways: Mapping[int, str | None], capability: float) -> Iterator[str]:
    """Yield what makes larger pictures or a faster way fit, the cheapest first."""
    found = set(ways.values())
    if found == {WAYS[0]}:
        return
    if "sequential" in found:
        yield "--memory sequential"
    if "streaming" in found:
        yield "build --weight-streaming"
    if model.precision not in ("fp8", "int8"):
        yield "--precision fp8 or int8" if capability >= FP8 else "--precision int8"
    yield "4 bits, once they are there"


def fit_of(model: Model, found: Sequence[Need], cards: Sequence[Card]) -> tuple[dict[str, Any], list[str]]:
    """Return the fit of a model into cards as plain JSON and as lines."""
    fits = [card_fit(model, found, card) for card in cards]
    return fit_json(model, found, fits), fit_lines(model, found, fits)


def fit_lines(model: Model, found: Sequence[Need], fits: Sequence[CardFit]) -> list[str]:
    """Return the fit as lines: plans, what pictures need, and the cards, in three tables."""
    plans = [("plan", "bytes", "bound weights", "", "host memory of its build")]
    plans += [
        (
            plan.name,
            size_text(plan.bytes),
            size_text(plan.bound_bytes) if plan.bound else "-",
            "built" if plan.built else "estimated",
            f"about {size_text(build_memory_bytes(plan.weight_bytes, plan.bound_weights))}",
        )
        for plan in model.plans
    ]
    pictures: list[tuple[str, ...]] = [("picture", "keys and values", "scratch", *WAYS)]
    pictures += [
        (_square(need.side), *map(size_text, (need.cache_bytes, need.scratch_bytes, *need.ways.values())))
        for need in found
    ]
    sides = [need.side for need in found]
    cards: list[tuple[str, ...]] = [("card", "memory", "capability", *map(_square, sides), "largest", "what helps")]
    cards += [
        (
            fit.card.name,
            f"{fit.card.memory_bytes >> 30} GiB",
            fit.card.compute_capability,
            *(fit.ways[side] or "-" for side in sides),
            _square(fit.largest_side) if fit.largest_side else "-",
            fit.refused or ", ".join(fit.helps),
        )
        for fit in fits
    ]
    return [
        *table(plans, right=(1, 2)),
        *_once(model),
        *_twice(model),
        "",
        "device memory of a picture, an estimate but for the keys and values:",
        *table(pictures, right=range(1, 3 + len(WAYS))),
        "",
        f"the fastest way that fits, {size_text(RESERVED_BYTES)} left for driver and desktop:",
        *table(cards, right=(1, 2)),
    ]


def _once(model: Model) -> Iterator[str]:
    """Yield the sentence about bound weights, if there are any."""
    if model.bound_bytes:
        yield (
            f"bound weights lie on the card once for all plans that take them, {size_text(model.bound_bytes)} in all; "
            "for a card without room for them --weight-streaming builds plans with weights inside"
        )


def _twice(model: Model) -> Iterator[str]:
    """Yield the sentence about the plans that each have the transformer's weights, if there are several."""
    passes = [plan for plan in model.plans if plan.of_transformer and not plan.bound]
    if len(passes) > 1:
        weights = size_text(max(plan.weight_bytes for plan in passes))
        yield (
            f"{', '.join(plan.name for plan in passes)} each have the transformer's weights, {weights}; in turns the "
            "card holds one of them, and a new prompt loads both; built with --weight-streaming, only the step keeps "
            "weights on the card, as many as fit, and reads the others from the host in every step"
        )


def fit_json(model: Model, found: Sequence[Need], fits: Sequence[CardFit]) -> dict[str, Any]:
    """Return the fit as plain JSON."""
    return {
        "plans": [_plan_json(plan) for plan in model.plans],
        "bound_bytes": model.bound_bytes,
        "pictures": [asdict(need) for need in found],
        "reserved_bytes": RESERVED_BYTES,
        "cards": [
            {
                "name": fit.card.name,
                "compute_capability": fit.card.compute_capability,
                "memory_bytes": fit.card.memory_bytes,
                "refused": fit.refused,
                "ways": {_square(side): way for side, way in fit.ways.items()},
                "largest": {
                    way: side and _square(side) for way, side in {"any": fit.largest_side, **fit.largest}.items()
                },
                "helps": list(fit.helps),
            }
            for fit in fits
        ],
    }


def _plan_json(plan: PlanSize) -> dict[str, Any]:
    numbers = {key: value for key, value in asdict(plan).items() if key != "bound"}
    memory = build_memory_bytes(plan.weight_bytes, plan.bound_weights)
    return {**numbers, "bound_bytes": plan.bound_bytes, "build_memory_bytes": memory}


def _square(side: int) -> str:
    return f"{side}x{side}"
