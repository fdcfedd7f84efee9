"""The JSON schemas of the parts of results of `bench` and `verify` that `compare` reads. Other parts are ignored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen_image_engine.runtime.system.json_schema import (
    ANYTHING,
    COUNT,
    NOT_NEGATIVE,
    NUMBER,
    POSITIVE,
    SHARE,
    SIGMAS,
    TEXT,
    TRUTH,
    WHOLE,
    Check,
    SchemaError,
    is_count,
    is_list_of,
    leaf,
    many,
    named,
    optional,
    record,
)
from qwen_image_engine.runtime.tools.bench.stages import COMPARED, STAGES
from qwen_image_engine.runtime.tools.compare.measures import RELATIVE_L2, compared_measures

_ROLE = leaf("engine or baseline", lambda value: value in ("engine", "baseline"))
_SIZE = leaf(
    "a width and a height in pixels",
    lambda value: is_list_of(value, is_count, 2),
)
_MEMORY = record(dict.fromkeys(("resident_bytes", "anonymous_bytes", "file_bytes"), WHOLE), closed=True)

_SETTINGS = record(
    {
        "bundle": TEXT,
        "checkpoint": optional(TEXT),
        "engines": many(TEXT),
        "baselines": many(TEXT, least=0),
        "sizes": many(_SIZE),
        "steps": many(optional(COUNT)),
        "batches": many(COUNT),
        "references": many(WHOLE),
        "reference_resolution": COUNT,
        "rounds": COUNT,
        "threads": optional(COUNT),
        "memory": TEXT,
    },
    dict.fromkeys(("output", "report", "kernel_specialization"), optional(TEXT))
    | {"solvers": many(TEXT), "sigmas": SIGMAS},
    closed=True,
)

_WAY = record(
    {
        "name": TEXT,
        "role": _ROLE,
        "missing": optional(TEXT),
        "version": TEXT,
        "precision": TEXT,
        "load_s": NOT_NEGATIVE,
        "load_peak": optional(_MEMORY),
        "peak_bytes": optional(COUNT),
        "disk_bytes": WHOLE,
    },
    closed=True,
)

_CASE = record(
    dict.fromkeys(("width", "height", "steps", "batch"), COUNT) | {"references": WHOLE},
    {"solver": TEXT, "sigmas": SIGMAS},
    closed=True,
)


def _sample(value: Any, place: str) -> None:
    """Check the seconds by stage of one picture.

    The stage "rest" is a difference and may be below 0 after rounding. Seconds of every other stage must be positive.

    Raises:
        SchemaError: a stage is unknown, its seconds are not valid, or "total" is missing.
    """
    named(many(ANYTHING), STAGES)(value, place)
    for stage, seconds in value.items():
        many(POSITIVE if stage in COMPARED else NUMBER)(seconds, f"{place}.{stage}")
    if "total" not in value:
        raise SchemaError(f"{place}.total is missing")


def _run(value: Any, place: str) -> None:
    record(
        {
            "way": TEXT,
            "role": _ROLE,
            "warm_up": named(many(NUMBER), STAGES),
            "peaks": named(_MEMORY, STAGES),
            "rounds": many(_sample),
            "waiting": many(optional(SHARE)),
        }
    )(value, place)
    rounds, waiting = value["rounds"], value["waiting"]
    if len(rounds) != len(waiting):
        raise SchemaError(f"{place} has {len(rounds)} rounds and {len(waiting)} of waiting, expected as many")
    for index, found in enumerate(rounds):
        if found.keys() != rounds[0].keys():
            stage = min(found.keys() ^ rounds[0].keys())
            raise SchemaError(f"{place}: of rounds[0] and rounds[{index}] only one has {stage}")


_BENCH = record(
    {
        "settings": _SETTINGS,
        "bundle": record({"precision": TEXT, "checkpoint": TEXT}),
        "environment": record({"machine": record({"cpu": TEXT, "cores": COUNT})}),
        "ways": many(_WAY),
        "cases": many(record({"case": _CASE, "runs": many(_run)})),
    }
)


def _verified_case(value: Any, place: str) -> None:
    """Check the keys of a case that `compare` reads. A document may lack measures that are newer than the document."""
    measures = {measure.name: optional(NOT_NEGATIVE) for measure in compared_measures()}
    always = {RELATIVE_L2.name: measures.pop(RELATIVE_L2.name)}
    record({"case": TEXT, "passed": TRUTH} | always, measures)(value, place)


_BUNDLE = record(
    {
        "passed": TRUTH,
        "components": many(record({"component": TEXT, "cases": many(_verified_case)})),
        **dict.fromkeys(
            ("checkpoint", "config_sha256", "weights_sha256", "precision", "engine", "engine_version"), TEXT
        ),
    },
    {
        "limits": many(
            record({"row": TEXT, "relative_l2": NOT_NEGATIVE, "found": optional(NOT_NEGATIVE), "passed": TRUTH}),
            least=0,
        )
    },
)


def _verify(value: Any, place: str) -> None:
    """Check the document of one bundle or of several bundles."""
    if isinstance(value, dict) and "bundles" in value:
        record({"passed": TRUTH, "bundles": many(_BUNDLE)})(value, place)
    else:
        _BUNDLE(value, place)


FORMS: Mapping[str, Check] = {"bench": _BENCH, "verify": _verify}
"""Checks of result files by the verb that wrote them."""
