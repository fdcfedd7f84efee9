"""A pipeline on toy networks in numpy: the real host side, contracts included, and engines that count their runs.

Every output depends on every input, so that a stale cache, a wrong table or a mixed-up row shows in the pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qwen_image_engine.engines.core import contract_check
from qwen_image_engine.engines.core.contract import Contract, Dims, contract
from qwen_image_engine.engines.core.contract_check import Array
from qwen_image_engine.engines.core.device_array import DeviceArray, Values, on_host
from qwen_image_engine.runtime.component_pool import ComponentPool, Memory
from qwen_image_engine.runtime.conditioning import KEPT_BYTES
from qwen_image_engine.runtime.images.picture import Picture
from qwen_image_engine.runtime.model.facts import ModelFacts, VisionFacts
from qwen_image_engine.runtime.pipeline import PictureOrigin, QwenImage
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig
from qwen_image_engine.runtime.text.embedding import EmbeddingTable
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from tests.support.numpy_memory import on_device

DIMS = Dims(
    encoder_hidden=8,
    encoder_head_dim=6,
    context=8,
    layers=2,
    heads=2,
    head_dim=6,
    channels=4,
    z=4,
    features=4,
    vision_head_dim=4,
    deepstack=2,
)
FACTS = ModelFacts(
    channels=4,
    axes_dims_rope=(2, 2, 2),
    encoder_heads=3,
    encoder_head_dim=6,
    encoder_rope_theta=1e4,
    encoder_mrope_section=(1, 1, 1),
    deepstack=2,
    decoder_halo=1,
    cache_token_bytes=2 * 4 * 2 * 2 * 6,
    bidirectional=False,
    vision=VisionFacts(
        head_dim=4,
        rope_theta=1e4,
        position_side=4,
        image_mean=(0.5, 0.5, 0.5),
        image_std=(0.5, 0.5, 0.5),
        min_pixels=1024,
        max_pixels=1 << 20,
    ),
)
VOCABULARY = 2000
SCHEDULE = ScheduleConfig(
    use_dynamic_shifting=True,
    shift=1.0,
    base_shift=0.5,
    max_shift=0.9,
    base_image_seq_len=256,
    max_image_seq_len=8192,
    shift_terminal=0.02,
    sample_sigmas=None,
)


@dataclass
class Journal:
    """A journal of engines in order ("load step", "run step", "close step"), and where one is to spoil its output."""

    events: list[str] = field(default_factory=list)
    spoiled: str | None = None

    def counts(self) -> Counter[str]:
        return Counter(self.events)

    def held_at_most(self) -> int:
        held = most = 0
        for event in self.events:
            held += event.startswith("load") - event.startswith("close")
            most = max(most, held)
        return most


class NumpyEngine:
    def __init__(self, component: str, journal: Journal, keeps_on_device: bool = False) -> None:
        self.contract: Contract = contract(component, DIMS)
        self.keeps_on_device = keeps_on_device
        self.journal = journal
        self.closed = False
        journal.events.append(f"load {component}")

    def run(self, inputs: Mapping[str, Values]) -> dict[str, Values]:
        assert not self.closed
        self.journal.events.append(f"run {self.contract.component}")
        sizes = contract_check.check_inputs(self.contract, inputs)
        for name, values in inputs.items():
            assert isinstance(values, DeviceArray) == (self.keeps_on_device and values.ndim == 4 and "_" in name)
        host = {name: on_host(values) for name, values in inputs.items()}
        outputs = dict(zip((spec.name for spec in self.contract.outputs), self.outputs(host), strict=True))
        if self.journal.spoiled == self.contract.component:
            next(iter(outputs.values())).flat[0] = np.nan
        contract_check.check_outputs(self.contract, outputs, sizes)
        if self.keeps_on_device and self.contract.component.startswith("prefix"):
            return {name: on_device(values) for name, values in outputs.items()}
        return {**outputs}

    def close(self) -> None:
        self.closed = True
        self.journal.events.append(f"close {self.contract.component}")

    def outputs(self, inputs: Mapping[str, Array]) -> list[Array]:
        if self.contract.component == "vae_decoder_mid":
            latents = inputs["latents"]
            return [(latents + latents.mean((2, 3), keepdims=True)).repeat(2, 2).repeat(2, 3)]
        if self.contract.component == "vae_decoder_up":
            padded = np.pad(inputs["features"], [(0, 0), (0, 0), (2, 2), (2, 2)])  # the halo of `FACTS`
            seen = padded[:, :, 2:-2, 2:-2] + padded[:, :, :-4, 4:] / 4 - padded[:, :, 4:, :-4] / 2
            return [np.tanh(seen).repeat(8, 2).repeat(8, 3)]
        if self.contract.component == "vae_encoder":
            image = inputs["image"]
            b, c, height, width = image.shape
            return [image.reshape(b, c, height // 16, 16, width // 16, 16)[:, :, :, 3, :, 5]]
        angles = {name: _angles(inputs, name) for name in ("", "image_", "text_") if f"{name}cos" in inputs}
        if self.contract.component == "text_encoder":
            added = sum(2**index * inputs[f"deepstack_{index}"] for index in range(DIMS.deepstack))
            return [np.cumsum(inputs["embeddings"] + added, 1, dtype=np.float32) / 4 + angles[""]]
        if self.contract.component == "vision":
            position = (inputs["indices"] * inputs["weights"]).sum(1)[:, None].astype(np.float32)  # (patches, 1)
            patches = inputs["patches"].reshape(*inputs["patches"].shape[:2], DIMS.encoder_hidden, -1).mean(3)
            slots = (patches + 0.1 * position + angles[""]).reshape(len(patches), -1, 4, DIMS.encoder_hidden).sum(2)
            return [slots, *(np.roll(slots, index + 1, 2) for index in range(DIMS.deepstack))]
        if self.contract.component == "prefix":
            return _keys_and_values(_mean(inputs["text_states"]) + angles[""], 0)
        past = [values.mean((1, 2, 3))[:, None, None] for values in inputs.values() if values.ndim == 4]
        cache = sum(float(index + 1) * values for index, values in enumerate(past))
        if self.contract.component == "prefix_image":
            image = _mean(inputs["latents"]) + angles["image_"]
            text = _mean(inputs["text_states"]) + angles["text_"]
            return _keys_and_values(np.concatenate([image + image.mean(1, keepdims=True), text], 1), cache)
        time = inputs["time_features"].mean()
        if self.contract.component == "joint":
            latents = inputs["latents"] + 0.1 * inputs["latents"].mean(1, keepdims=True)
            text = (_mean(inputs["text_states"]) + angles["text_"]).mean(1, keepdims=True)
            return [(0.5 * latents + np.sin(text) + time + 0.01 * angles[""]).astype(np.float32)]
        return [(0.5 * inputs["latents"] + np.sin(cache) + time + 0.01 * angles[""]).astype(np.float32)]


def _angles(inputs: Mapping[str, Array], name: str) -> Array:
    """(tokens, 1)."""
    return np.asarray((inputs[f"{name}cos"] - inputs[f"{name}sin"]).sum(1)[:, None])


def _mean(values: Array) -> Array:
    return np.asarray(values.mean(2, keepdims=True))


def _keys_and_values(states: Array, past: Array | int) -> list[Array]:
    """Keys and values of every layer, from (batch, tokens, 1) with later tokens seeing earlier ones."""
    seen = (np.cumsum(states, 1) + past)[..., None].astype(np.float32)
    shape = (*seen.shape[:2], DIMS.heads, DIMS.head_dim)
    return [np.broadcast_to(seen / (index + 1), shape).copy() for index in range(2 * DIMS.layers)]


def numpy_pipeline(
    checkpoint: Path,
    journal: Journal,
    memory: Memory = "resident",
    schedule: ScheduleConfig = SCHEDULE,
    facts: ModelFacts = FACTS,
    kept_bytes: int = KEPT_BYTES,
    absent: tuple[str, ...] = (),
    keeps_on_device: bool = False,
    engine: str = "numpy",
) -> QwenImage:
    """A pipeline with the tokenizer of `checkpoint`; its embedding table is written there."""
    table = checkpoint / "embeddings.bin"
    if not table.exists():
        np.random.default_rng(0).standard_normal((VOCABULARY, DIMS.encoder_hidden), np.float32).tofile(table)
    return QwenImage(
        ComponentPool(lambda component: NumpyEngine(component, journal, keeps_on_device), memory),
        load_tokenizer(checkpoint),
        EmbeddingTable.open(table, 0, "float32", (VOCABULARY, DIMS.encoder_hidden)),
        schedule,
        facts,
        PictureOrigin(engine=engine, precision="fp32", checkpoint="toy"),
        kept_bytes,
        absent,
    )


def same_pictures(first: list[Picture], second: list[Picture]) -> bool:
    """Return whether latents and pixels are equal bit for bit."""
    return all(
        np.array_equal(a.latents, b.latents) and np.array_equal(a.rgba, b.rgba)
        for a, b in zip(first, second, strict=True)
    )
