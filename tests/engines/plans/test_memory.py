"""Bytes of an engine's inputs and outputs, against arrays that toy networks take and give."""

import numpy as np
import pytest

from qwen_image_engine.engines.core.contract import CONTRACTS, contract
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.plans.memory import missing_bytes, port_bytes
from qwen_image_engine.engines.plans.profile import Range, profile
from tests.support.numpy_engines import DIMS, Journal, NumpyEngine

AXES = {"text": 7, "prefix": 5, "tokens": 24, "image": 12, "slots": 3, "height": 6, "width": 4}


def largest(component: str, batch: int = 1) -> Profile:
    sizes = {name: Range(1, 2, size) for name, size in AXES.items()} | {"batch": Range(1, 1, batch)}
    return profile(contract(component, DIMS), "largest", sizes)


@pytest.mark.parametrize("component", CONTRACTS)
def test_inputs_and_outputs(component: str) -> None:
    spec, item = contract(component, DIMS), largest(component)
    arrays = {port.name: np.ones(item.shapes[port.name][2], port.dtype) for port in spec.inputs}
    outputs = NumpyEngine(component, Journal()).run(arrays)
    assert port_bytes(spec, item) == sum(values.nbytes for values in (*arrays.values(), *outputs.values()))


def test_what_is_missing_by_profile() -> None:
    spec = contract("step", DIMS, "bfloat16")
    profiles = [largest("step"), Profile("two", largest("step", 2).shapes)]
    ports = [port_bytes(spec, item) for item in profiles]
    assert missing_bytes(spec, profiles, (), 100, ports[1] + 100) == {}
    assert missing_bytes(spec, profiles, (), 100, ports[1]) == {"two": 100}
    assert missing_bytes(spec, profiles, (50, 60), 100, ports[1]) == {"two": 160}
    assert missing_bytes(spec, profiles, (ports[1], 0), 0, ports[1]) == {"largest": ports[0]}
