"""Facts of docs/embedding.md that stand in code too. Its tables of tensors are written from the contracts."""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest

from qwen_image_engine.engines.core.contract import CONTRACTS, markdown
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.manifest import SCHEMA
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry, EmbeddingsEntry
from qwen_image_engine.runtime.model.tiles import TILE_LATENTS
from qwen_image_engine.runtime.sampling.schedule import DEFAULT_STEPS, MAX_STEPS
from qwen_image_engine.runtime.text.prompt import TEXT_TEMPLATE
from tests.support.paths import ROOT
from tests.support.toy_manifest import toy_manifest

TEXT = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def code(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.fixture(scope="module")
def manifest() -> Mapping[str, Any]:
    step = CONTRACTS["step"]
    component = ComponentEntry("step.onnx", ("weights.safetensors",), "bf16", (), {}, 23, 11, step)
    embeddings = EmbeddingsEntry("embeddings.safetensors", 8, "bfloat16", (2, 4))
    return toy_manifest(components={"step": component}, embeddings=embeddings, files={}).to_json()


def test_keys_of_the_manifest_exist(manifest: Mapping[str, Any]) -> None:
    rows = [line.split(" | ") for line in section("The manifest").splitlines() if line.startswith("| `")]
    assert len(rows) > 10
    for keys, holds in rows:
        for key in code(keys):
            value: Any = manifest
            for part in key.split("."):
                value = value[part]
            if key in ("embeddings", "facts.vision"):
                assert set(code(holds)) <= value.keys()


def test_keys_of_a_plan_exist() -> None:
    named = set(code(section("Plans and profiles").partition("Of an entry:")[2].partition("each with")[0]))
    assert named - {"tensorrt", "tensorrt-rtx"} <= {item.name for item in fields(PlanEntry)}
    assert {"file", "version", "profiles"} <= named


def test_tables_are_those_of_the_contracts() -> None:
    assert markdown() in TEXT


def test_numbers_and_the_template() -> None:
    assert TEXT_TEMPLATE.format("{images}{prompt}").replace("\n", "\\n") in TEXT
    assert f"⌈n/{TILE_LATENTS}⌉" in section("Decoding")
    assert f"at most {MAX_STEPS} steps, and {DEFAULT_STEPS} by default" in section("Noise levels")
    assert SCHEMA == 9, "read docs/embedding.md and docs/embedding/draw.cpp again: the manifest's form has changed"
