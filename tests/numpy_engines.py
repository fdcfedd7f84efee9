"""A pipeline on toy networks in numpy: the real host side, contracts included, and engines that count their runs.

Every output depends on every input, so that a stale cache, a wrong table or a mixed-up row shows in the pictures.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qwen_image_engine.engines import check
from qwen_image_engine.engines.check import Array
from qwen_image_engine.engines.contract import Contract, Dims, contract
from qwen_image_engine.runtime.embedding import EmbeddingTable
from qwen_image_engine.runtime.memory import Components, Memory
from qwen_image_engine.runtime.model import ModelFacts
from qwen_image_engine.runtime.pipeline import Origin, QwenImage
from qwen_image_engine.runtime.schedule import ScheduleConfig
from qwen_image_engine.runtime.tokenizer import load_tokenizer

DIMS = Dims(encoder_hidden=8, encoder_head_dim=4, context=8, layers=2, heads=2, head_dim=6, channels=4, z=4, features=4)
FACTS = ModelFacts(channels=4, axes_dims_rope=(2, 2, 2), encoder_head_dim=4, encoder_rope_theta=1e4, decoder_halo=1)
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
    """What the engines did, in order ("load step", "run step", "close step"), and where one is to spoil its output."""

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
    def __init__(self, component: str, journal: Journal) -> None:
        self.contract: Contract = contract(component, DIMS)
        self.journal = journal
        self.closed = False
        journal.events.append(f"load {component}")

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        assert not self.closed
        self.journal.events.append(f"run {self.contract.component}")
        sizes = check.check_inputs(self.contract, inputs)
        outputs = dict(zip((spec.name for spec in self.contract.outputs), self._outputs(inputs), strict=True))
        if self.journal.spoiled == self.contract.component:
            next(iter(outputs.values())).flat[0] = np.nan
        check.check_outputs(self.contract, outputs, sizes)
        return outputs

    def close(self) -> None:
        self.closed = True
        self.journal.events.append(f"close {self.contract.component}")

    def _outputs(self, inputs: Mapping[str, Array]) -> list[Array]:
        if self.contract.component == "vae_decoder_mid":
            latents = inputs["latents"]
            return [(latents + latents.mean((2, 3), keepdims=True)).repeat(2, 2).repeat(2, 3)]
        if self.contract.component == "vae_decoder_up":
            padded = np.pad(inputs["features"], [(0, 0), (0, 0), (2, 2), (2, 2)])  # the halo of `FACTS`
            seen = padded[:, :, 2:-2, 2:-2] + padded[:, :, :-4, 4:] / 4 - padded[:, :, 4:, :-4] / 2
            return [np.tanh(seen).repeat(8, 2).repeat(8, 3)]
        angles = (inputs["cos"] - inputs["sin"]).sum(1)[:, None]  # (tokens, 1)
        if self.contract.component == "text_encoder":
            return [np.cumsum(inputs["embeddings"], 1) / 4 + angles]
        if self.contract.component == "prefix":
            states = np.cumsum(inputs["text_states"].mean(2, keepdims=True) + angles, 1)[..., None]  # (B, T, 1, 1)
            shape = (*states.shape[:2], DIMS.heads, DIMS.head_dim)
            return [np.broadcast_to(states / (i + 1), shape).copy() for i in range(2 * DIMS.layers)]
        cache = sum(values.mean((1, 2, 3))[:, None, None] for values in inputs.values() if values.ndim == 4)
        time = inputs["time_features"].mean()
        return [(0.5 * inputs["latents"] + np.tanh(cache) + time + 0.01 * angles).astype(np.float32)]


def numpy_pipeline(
    checkpoint: Path, journal: Journal, memory: Memory = "resident", schedule: ScheduleConfig = SCHEDULE
) -> QwenImage:
    """A pipeline with the tokenizer of `checkpoint`; its embedding table is written there."""
    table = checkpoint / "embeddings.bin"
    if not table.exists():
        np.random.default_rng(0).standard_normal((VOCABULARY, DIMS.encoder_hidden), np.float32).tofile(table)
    return QwenImage(
        Components(lambda component: NumpyEngine(component, journal), memory),
        load_tokenizer(checkpoint),
        EmbeddingTable.open(table, 0, "float32", (VOCABULARY, DIMS.encoder_hidden)),
        schedule,
        FACTS,
        Origin(engine="numpy", precision="fp32", checkpoint="toy"),
    )
