"""The consistency of a manifest's facts: with the sizes that the contracts name, and with each other.

A manifest whose values are all in range can still be nonsense. The networks' sizes follow from `Dims`, so contracts and
facts must agree with them. The bases of rotary frequencies, the normalisation of images and the place of the token
embeddings follow from nothing: the manifest's `facts_sha256` finds damage of these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qwen_image_engine.engines.core.contract import CODES, Contract, Dims, contract
from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.core.dtypes import PRECISIONS
from qwen_image_engine.engines.plans.entry import LAYERS, PLAN, PlanEntry
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.system.json_schema import SchemaError, described, fields_of, whole_between

_SIZE = whole_between(1, 2**20)
DIMS_SCHEMA = fields_of(
    Dims,
    **{
        **dict.fromkeys(Dims.__annotations__, _SIZE),
        "layers": whole_between(1, 1000),
        "deepstack": whole_between(0, 1000),
    },
)
"""Check of the JSON of `Dims`. A contract has two tensors for each layer, so their number is bounded."""


def check_facts(facts: ModelFacts, dims: Dims) -> None:
    """Raise if facts do not follow from the sizes that the contracts name, or contradict each other.

    Raises:
        SchemaError: a fact has another value than the sizes give. The text names the first.
    """
    cache = 0 if facts.bidirectional else 2 * 4 * dims.layers * dims.heads * dims.head_dim
    vision = facts.vision
    for place, found, expected in (
        ("dims.z", dims.z, dims.channels),
        ("dims.context", dims.context, dims.encoder_hidden),
        ("facts.channels", facts.channels, dims.channels),
        ("the sum of facts.axes_dims_rope", sum(facts.axes_dims_rope), dims.head_dim),
        ("facts.encoder_head_dim", facts.encoder_head_dim, dims.encoder_head_dim),
        ("twice the sum of facts.encoder_mrope_section", 2 * sum(facts.encoder_mrope_section), dims.encoder_head_dim),
        ("facts.deepstack", facts.deepstack, dims.deepstack),
        ("facts.cache_token_bytes", facts.cache_token_bytes, cache),
        ("facts.vision.head_dim", vision.head_dim, dims.vision_head_dim),
    ):
        if found != expected:
            raise SchemaError(f"{place} is {found}, expected {expected} as the sizes in dims have it")
    if any(axis % 2 for axis in facts.axes_dims_rope):
        raise SchemaError(f"facts.axes_dims_rope is {described(facts.axes_dims_rope)}, expected even numbers")
    if vision.head_dim % 4:
        raise SchemaError(f"facts.vision.head_dim is {vision.head_dim}, expected a multiple of 4")
    if vision.min_pixels > vision.max_pixels:
        raise SchemaError(f"facts.vision.min_pixels is {vision.min_pixels}, expected at most max_pixels")


def check_contracts(contracts: Mapping[str, Contract], dims: Dims) -> None:
    """Raise if a contract is not the component's own for these sizes.

    Keys and values may have any float dtype, and each of them may be codes of FP8 instead.

    Raises:
        SchemaError: there is no such component, or its contract has other tensors. The text names the component.
    """
    ports = [spec for item in contracts.values() for spec in (*item.inputs, *item.outputs) if spec.is_cache]
    codes = {spec.layer_tensor for spec in ports if spec.dtype == CODES}
    caches = {spec.dtype for spec in ports if spec.layer_tensor not in codes}
    if len(caches) > 1:
        raise SchemaError(f"components have keys and values in {len(caches)} dtypes beside codes, expected one")
    cache = next(iter(caches), "float32")
    if cache not in _FLOATS:
        known = ", ".join((*_FLOATS, CODES))
        raise SchemaError(f"components have keys and values in {described(cache)}, expected {known}")
    for name, found in contracts.items():
        if found.component != name or not found.same_tensors(contract(name, dims, cache, codes)):
            raise SchemaError(f"components.{name}.contract is another than the sizes in dims give")


def check_plans(plans: Mapping[str, Sequence[PlanEntry]], contracts: Mapping[str, Contract]) -> None:
    """Raise if a plan's profiles are not of its component's inputs, or two plans are for the same builder and GPUs.

    Raises:
        SchemaError: there is no such component, two of its plans have one builder and one set of compute capabilities,
            a profile has other inputs or an input of another rank, or the scratch memory is of another number of
            profiles.
    """
    for name, entries in plans.items():
        if name not in contracts:
            raise SchemaError(f"plans has {name}, which is no component of it")
        if len({plan.place for plan in entries}) < len(entries):
            raise SchemaError(f"plans.{name} has two plans of one builder for the same compute capabilities")
        for number, plan in enumerate(entries):
            _check_plan(f"plans.{name}[{number}]", plan, contracts[name])
    listed = [file for entries in plans.values() for plan in entries for file in plan.listed]
    if len(set(listed)) < len(listed):
        raise SchemaError("plans has a file twice")


def _check_plan(place: str, plan: PlanEntry, component: Contract) -> None:
    # Files of plans are left out of hashes and replaced by builds: no other file may pass for one.
    if not plan.file.endswith(PLAN) or not (plan.layers or LAYERS).endswith(LAYERS):
        raise SchemaError(f"{place} has the files {described(list(plan.listed))}, expected *{PLAN} and *{LAYERS}")
    needs_gpu = plan.builder == "tensorrt"
    if (plan.gpu is None or plan.driver is None) == needs_gpu:
        raise SchemaError(f"{place} is of {plan.builder}, which is built {'on a' if needs_gpu else 'without a'} GPU")
    ranks = {spec.name: len(spec.shape) for spec in component.inputs}
    for index, profile in enumerate(plan.profiles):
        if {key: len(shapes[0]) for key, shapes in profile.shapes.items()} != ranks:
            raise SchemaError(f"{place}.profiles[{index}] is of other inputs than the component has")
    if len(plan.scratch_bytes) not in (0, len(plan.profiles)):
        raise SchemaError(f"{place}.scratch_bytes has {len(plan.scratch_bytes)} of {len(plan.profiles)} profiles")


def check_table(embeddings: Mapping[str, Any], dims: Dims, file_bytes: int) -> None:
    """Raise if the token embedding table does not lie in its file, or is no input of the text encoder.

    Args:
        embeddings: the manifest's entry of the table.
        dims: sizes that the contracts name.
        file_bytes: size of the table's file.

    Raises:
        SchemaError: dtype, width or place of the table is wrong.
    """
    dtype, (rows, width), offset = embeddings["dtype"], embeddings["shape"], embeddings["offset"]
    if dtype not in _FLOATS:
        raise SchemaError(f"embeddings.dtype is {described(dtype)}, expected {', '.join(_FLOATS)}")
    if width != dims.encoder_hidden:
        raise SchemaError(
            f"embeddings.shape[1] is {width}, expected {dims.encoder_hidden} as the sizes in dims have it"
        )
    end = offset + size_bytes((rows, width), dtype)
    if end > file_bytes:
        raise SchemaError(f"embeddings end at byte {end} of a file of {file_bytes} bytes")


_FLOATS = tuple(row.name for row in PRECISIONS.values())
