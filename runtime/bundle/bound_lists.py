"""The lists of the weights that plans take as inputs: their form in the manifest, and their check against graphs.

Plans of one component for several GPUs have one list, so the manifest has each list once, under its digest, which the
plans name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.external_weights import ExternalWeight, external_weights, read_graph
from qwen_image_engine.engines.plans.bound_weight import BoundWeight
from qwen_image_engine.runtime.system.json_schema import SchemaError, described

LISTS = "bound_weights"
"""Key of the lists in the manifest."""


def list_digest(weights: Iterable[Mapping[str, Any]]) -> str:
    """Return the SHA-256 of a list of weights, each as `dataclasses.asdict` or JSON has it."""
    text = json.dumps([*weights], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def with_digests(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest as `dataclasses.asdict` has it with the plans' lists under `LISTS`, in the plans by digest."""
    lists: dict[str, Any] = {}

    def named(plan: Mapping[str, Any]) -> dict[str, Any]:
        if not plan["bound"]:
            return {**plan, "bound": None}
        digest = list_digest(plan["bound"])
        lists[digest] = plan["bound"]
        return {**plan, "bound": digest}

    plans = {name: [named(plan) for plan in found] for name, found in document["plans"].items()}
    return {**document, "plans": plans, LISTS: lists}


def list_of(
    place: str, digest: str | None, lists: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[BoundWeight, ...]:
    """Return the list that a plan names. `place` is the plan's place in the manifest, `lists` are all lists there.

    Raises:
        SchemaError: there is no such list, it is another than its digest says, or a name or dtype in it is wrong.
    """
    if digest is None:
        return ()
    if digest not in lists:
        raise SchemaError(f"{place} has the bound weights {described(digest)}, which are not in {LISTS}")
    found = lists[digest]
    if list_digest(found) != digest:
        raise SchemaError(f"{LISTS}.{digest} is another list than its key, a SHA-256, says")
    weights = tuple(BoundWeight(**{**weight, "shape": tuple(weight["shape"])}) for weight in found)
    if len({weight.name for weight in weights}) < len(weights):
        raise SchemaError(f"{LISTS}.{digest} has a weight twice")
    if unknown := next((weight.dtype for weight in weights if weight.dtype not in DTYPES), None):
        raise SchemaError(f"{LISTS}.{digest} has the dtype {described(unknown)}, which is no dtype of weights")
    return weights


def bindable_weights(folder: Path, model: str) -> tuple[BoundWeight, ...]:
    """Return the weights that a plan of a graph can take as inputs, without hashes, in the order of the plan's inputs.

    Args:
        folder: the bundle's folder.
        model: name of the graph's file in the bundle.

    Raises:
        QwenImageError: the graph cannot be read.
    """
    return tuple(_bound(model, weight) for weight in _weights(folder, model) if weight.is_bindable)


def check_bound_weights(component: str, folder: Path, model: str, weights: Sequence[BoundWeight], rebuild: str) -> None:
    """Raise if a weight of a plan's list is not where the component's graph has it.

    `check_graphs` compares the graph with the headers of the weight files, so a list that passes both is of weights
    that are there.

    Args:
        component: name of the component.
        folder: the bundle's folder.
        model: name of the graph's file in the bundle.
        weights: the plan's list.
        rebuild: the command that builds another plan.

    Raises:
        QwenImageError: the graph cannot be read, or has no weight of a name, or has it with another dtype, shape, file
            or offset. The text names the first.
    """
    if not weights:
        return
    there = {weight.name: _bound(model, weight) for weight in _weights(folder, model)}
    for weight in weights:
        if (found := there.get(weight.name)) != weight.without_hash:
            raise QwenImageError(
                f"{component}: its plan's list of bound weights is another bundle's: {weight.name} is "
                f"{_described(weight)} in the list, and {_described(found)} in {model}; build it again with: {rebuild}"
            )


def bound_bytes(weights: Iterable[BoundWeight]) -> int:
    """Return the bytes of weights; weights of one place count once."""
    return sum({(item.file, item.offset): size_bytes(item.shape, item.dtype) for item in weights}.values())


def _weights(folder: Path, model: str) -> list[ExternalWeight]:
    try:
        return external_weights(read_graph(folder / model))
    except (OSError, ValueError) as error:
        raise QwenImageError(f"{folder / model}: cannot be read ({error}); export the bundle again") from error


def _bound(model: str, weight: ExternalWeight) -> BoundWeight:
    file = (PurePosixPath(model).parent / weight.location).as_posix()
    return BoundWeight(weight.name, weight.dtype, weight.shape, file, weight.offset, "")


def _described(weight: BoundWeight | None) -> str:
    if weight is None:
        return "missing"
    return f"{weight.dtype} {list(weight.shape)} at byte {weight.offset} of {weight.file}"
