"""A driver and a TensorRT that are played, and bundles of plans for them."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.contract import CONTRACTS, contract
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.engines.tensorrt.package import choose
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry, EmbeddingsEntry
from tests.support.fake_cuda import FakeDriver
from tests.support.fake_tensorrt import forget_modules
from tests.support.fake_tensorrt_rtx import RTX_VERSION, IRuntimeConfig, fake_tensorrt_rtx
from tests.support.fake_tensorrt_runtime import VERSION, Known, fake_tensorrt, plan_bytes
from tests.support.numpy_engines import DIMS
from tests.support.played_tensorrt import MakeBundle, profile
from tests.support.toy_bound import plan_weights, toy_weights
from tests.support.toy_graph import toy_graph
from tests.support.toy_manifest import toy_manifest


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> FakeDriver:
    driver = FakeDriver()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    return driver


@pytest.fixture
def product(request: pytest.FixtureRequest) -> str:
    """The engine that is played, where a test takes another than TensorRT."""
    return str(getattr(request, "param", "tensorrt"))


@pytest.fixture
def make_bundle(
    driver: FakeDriver, product: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[MakeBundle]:
    """A bundle of the toy networks, with what its plan entries are to say; with `weights="bound"` plans hold none."""
    rtx = product == "tensorrt-rtx"
    if rtx:
        driver.compute_capability = (8, 9)
    contracts = {name: contract(name, DIMS) for name in CONTRACTS}
    known = {
        name: Known(item, (profile(item, "all"), *([profile(item, "small", tokens=16)] if name == "step" else ())))
        for name, item in contracts.items()
    }

    def make(weights: str = "inside", **values: Any) -> Bundle:
        components, plans, files = {}, {}, {}
        bound = toy_weights(tmp_path) if weights == "bound" else dict.fromkeys(contracts, ())
        for name, item in contracts.items():
            graph, plan = tmp_path / f"{name}.onnx", tmp_path / f"{name}.plan"
            graph.write_bytes(toy_graph(name))
            plan.write_bytes(plan_bytes(name, values.get("stripped", False), plan_weights(tmp_path, bound[name])))
            stored = [
                tmp_path / file
                for file in dict.fromkeys(piece.file for weight in bound[name] for piece in weight.pieces)
            ]
            files |= {path.name: describe_file(path) for path in (graph, plan, *stored)}
            listed = tuple(path.name for path in stored) or (graph.name,)
            components[name] = ComponentEntry(graph.name, listed, "bf16", (), {}, 23, 11, item)
            profiles = tuple(known[name].profiles)
            if rtx:
                entry = PlanEntry(plan.name, "aa", product, RTX_VERSION, ("8.6", "8.9"), None, None, profiles)
            else:
                entry = PlanEntry(plan.name, "aa", product, VERSION, ("9.0",), "A GPU", 13000, profiles)
            plans[name] = (replace(entry, **{"bound": bound[name], **values}),)
        return Bundle(
            tmp_path,
            toy_manifest(
                embeddings=EmbeddingsEntry("step.onnx", 0, "float32", (1, 1)),
                components=components,
                files=files,
                plans=plans,
            ),
        )

    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt(known, driver))
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", fake_tensorrt_rtx(known, driver))
    IRuntimeConfig.made.clear()
    forget_modules()
    choose(product)  # whatever a test imports first
    yield make
    forget_modules()
