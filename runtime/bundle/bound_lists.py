"""The lists of the weights that plans take as inputs: their form in the manifest, and their check against graphs.

Plans of one component for several GPUs have one list, so the manifest has each list once, under its digest, which the
plans name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.external_weights import ExternalWeight, external_weights, read_graph
from qwen_image_engine.engines.core.graph.weight_inputs import WeightInput, weight_inputs
from qwen_image_engine.engines.plans.bound_weight import BoundWeight, WeightPiece
from qwen_image_engine.runtime.system.json_schema import SchemaError, described

_Read = TypeVar("_Read", ExternalWeight, WeightInput)

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


def with_pieces(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest of schema 8, whose inputs are one weight each, with its lists in the form of schema 9.

    Whatever is not as 8 had it stays, for the check to find.
    """
    lists, plans = document.get(LISTS), document.get("plans")
    if not isinstance(lists, dict) or not isinstance(plans, dict):
        return {**document}
    written, digests = {}, {}
    for digest, found in lists.items():
        is_list = isinstance(found, list) and all(map(_is_one_weight, found)) and list_digest(found) == digest
        new = [_with_piece(item) for item in found] if is_list else found
        digests[digest] = list_digest(new) if is_list else digest
        written[digests[digest]] = new
    plans = {
        name: [_with_digest(plan, digests) for plan in of] if isinstance(of, list) else of for name, of in plans.items()
    }
    return {**document, "plans": plans, LISTS: written}


def _is_one_weight(item: Any) -> bool:
    return isinstance(item, dict) and item.keys() == {"name", "dtype", "shape", "file", "offset", "sha256"}


def _with_piece(item: Mapping[str, Any]) -> dict[str, Any]:
    piece = {key: value for key, value in item.items() if key != "dtype"}
    return {"name": item["name"], "dtype": item["dtype"], "shape": item["shape"], "pieces": [piece]}


def _with_digest(plan: Any, digests: Mapping[str, str]) -> Any:
    bound = plan.get("bound") if isinstance(plan, dict) else None
    return {**plan, "bound": digests.get(bound, bound)} if isinstance(bound, str) else plan


def list_of(
    place: str, digest: str | None, lists: Mapping[str, Sequence[Mapping[str, Any]]]
) -> tuple[BoundWeight, ...]:
    """Return the list that a plan names. `place` is the plan's place in the manifest, `lists` are all lists there.

    Raises:
        SchemaError: there is no such list, it is another than its digest says, or a name, shape or dtype in it is
            wrong.
    """
    if digest is None:
        return ()
    if digest not in lists:
        raise SchemaError(f"{place} has the bound weights {described(digest)}, which are not in {LISTS}")
    found = lists[digest]
    if list_digest(found) != digest:
        raise SchemaError(f"{LISTS}.{digest} is another list than its key, a SHA-256, says")
    weights = tuple(_of_json(weight) for weight in found)
    if wrong := next((item for item in weights if not item.is_consistent), None):
        raise SchemaError(
            f"{LISTS}.{digest} has {described(wrong.name)} of the shape {list(wrong.shape)}, which are not the names "
            "and the shapes of its pieces, one behind the other"
        )
    if len({piece.name for weight in weights for piece in weight.pieces}) < sum(map(_count, weights)):
        raise SchemaError(f"{LISTS}.{digest} has a weight twice")
    if unknown := next((weight.dtype for weight in weights if weight.dtype not in DTYPES), None):
        raise SchemaError(f"{LISTS}.{digest} has the dtype {described(unknown)}, which is no dtype of weights")
    return weights


def _of_json(weight: Mapping[str, Any]) -> BoundWeight:
    pieces = tuple(WeightPiece(**{**piece, "shape": tuple(piece["shape"])}) for piece in weight["pieces"])
    return BoundWeight(**{**weight, "shape": tuple(weight["shape"]), "pieces": pieces})


def bindable_weights(folder: Path, model: str) -> tuple[BoundWeight, ...]:
    """Return the inputs of a graph's plan for weights, without hashes, in the order in which the plan has them.

    Args:
        folder: the bundle's folder.
        model: name of the graph's file in the bundle.

    Raises:
        QwenImageError: the graph, or a file with its scales, cannot be read.
    """
    found = _read(folder / model, lambda graph: weight_inputs(graph, (folder / model).parent))
    return tuple(BoundWeight.of(item.dtype, (_piece_of(model, piece) for piece in item.pieces)) for item in found)


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
    there = {item.name: (item.dtype, _piece_of(model, item)) for item in _read(folder / model, external_weights)}
    for weight in weights:
        for piece in weight.without_hash.pieces:
            if (found := there.get(piece.name)) != (weight.dtype, piece):
                listed = _described((weight.dtype, piece))
                raise QwenImageError(
                    f"{component}: its plan's list of bound weights is another bundle's: {piece.name} is {listed} in "
                    f"the list, and {_described(found)} in {model}; build it again with: {rebuild}"
                )


def bound_bytes(weights: Iterable[BoundWeight]) -> int:
    """Return the bytes of weights; weights of one place count once."""
    places = {(piece.file, piece.offset): item.nbytes(piece) for item in weights for piece in item.pieces}
    return sum(places.values())


def bound_count(weights: Iterable[BoundWeight]) -> int:
    """Return the number of a graph's weights that are inputs of its plan, or pieces of inputs."""
    return sum(map(_count, weights))


def _count(weight: BoundWeight) -> int:
    return len(weight.pieces)


def _read(path: Path, read: Callable[[memoryview], list[_Read]]) -> list[_Read]:
    try:
        return read(read_graph(path))
    except (OSError, ValueError) as error:
        raise QwenImageError(f"{path}: cannot be read ({error}); export the bundle again") from error


def _piece_of(model: str, weight: ExternalWeight) -> WeightPiece:
    file = (PurePosixPath(model).parent / weight.location).as_posix()
    return WeightPiece(weight.name, weight.shape, file, weight.offset, "")


def _described(weight: tuple[str, WeightPiece] | None) -> str:
    if weight is None:
        return "missing"
    dtype, piece = weight
    return f"{dtype} {list(piece.shape)} at byte {piece.offset} of {piece.file}"
