"""The estimate of the bytes that an export reads, writes and needs, from headers alone."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.export.estimate.duration import export_seconds
from qwen_image_engine.export.estimate.stage_memory import StageWidths, stage_memory
from qwen_image_engine.export.targets import Target, networks, selected
from qwen_image_engine.export.weights.network import network_weights
from qwen_image_engine.export.weights.weight_file import entry_bytes
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.pipeline import model_facts
from qwen_image_engine.reference.storage.tensor_file import TensorInfo
from qwen_image_engine.runtime.system.files import with_home
from qwen_image_engine.runtime.system.machine import reachable_memory_bytes
from qwen_image_engine.runtime.text.prompt import USUAL_PROMPT_TOKENS

Weights = Literal["copy", "link"]

# The exporter's peak: torch and onnx, and the graphs by layer; fitted to exports of `shapes` (0.48 to 0.52 GB) and of
# the released sizes (0.66 and 0.75 GB, benchmarks/results/full-size-export.json). Weights pass in blocks: none is held.
_EXPORT_BYTES = 460_000_000
_EXPORT_BYTES_PER_LAYER = 3_400_000

_VAE_ENCODER = ("encoder.", "quant_conv.")


@dataclass(frozen=True)
class NetworkEstimate:
    """The estimate for one network of the checkpoint.

    Attributes:
        network: name of the network.
        dtypes: number of stored elements, by dtype.
        stored_parameters: number of the network's parameters in the checkpoint's files.
        parameters: number of parameters that the bundle reads.
        stored_bytes: bytes of the network in the checkpoint's files.
        bundle_bytes: bytes that the weights add to the bundle's disk.
        engine_bytes: bytes that the weights take in memory if an engine holds them.
    """

    network: str
    dtypes: dict[str, int]
    stored_parameters: int
    parameters: int
    stored_bytes: int
    bundle_bytes: int
    engine_bytes: int


@dataclass(frozen=True)
class ExportEstimate:
    """The estimate for a whole export.

    Attributes:
        target: requested target.
        precision: requested precision.
        dtype: torch's name of the dtype of keys and values.
        codes: keys and values that are held in FP8 instead, by the contracts' names.
        weights: "copy" or "link", as requested.
        components: components of the bundle.
        networks: estimates for the networks, in the order in which they run.
        export_memory_bytes: peak bytes of the exporter.
        resident_bytes: bytes of weights that `run --memory resident` holds without reference images; prefix and step
            each have the transformer's.
        reference_bytes: bytes of weights that `run --memory resident` adds for reference images: vision tower, and the
            transformer once more.
        sequential_bytes: bytes of weights that `run --memory sequential` holds at once.
    """

    target: str
    precision: str
    dtype: str
    codes: tuple[str, ...]
    weights: Weights
    components: tuple[str, ...]
    networks: tuple[NetworkEstimate, ...]
    export_memory_bytes: int
    resident_bytes: int
    reference_bytes: int
    sequential_bytes: int

    @property
    def stored_bytes(self) -> int:
        """Bytes of the checkpoint's weights."""
        return sum(network.stored_bytes for network in self.networks)

    @property
    def bundle_bytes(self) -> int:
        """Bytes that the bundle adds to the disk, graphs of a few megabytes aside."""
        return sum(network.bundle_bytes for network in self.networks)


def estimate_export(
    checkpoint: Checkpoint,
    target: Target,
    quantised: Mapping[str, QuantisedNetwork],
    weights: Weights,
    components: Sequence[str] | None = None,
) -> ExportEstimate:
    """Estimate the export of `components` of `checkpoint`, by default all.

    The networks are `quantised` as `target` says.

    Raises:
        UsageError: `weights` is "link" for a checkpoint with merged adapters.
    """
    if weights == "link" and checkpoint.loras:
        raise UsageError(
            "--weights link with --lora: merged weights are no bytes of the checkpoint's files; use --weights copy"
        )
    chosen = selected(checkpoint) if components is None else tuple(components)
    plans = tuple(_network(checkpoint, name, target, quantised[name], weights, chosen) for name in networks(chosen))
    engines = {network.network: network.engine_bytes for network in plans}
    passes = 1 if checkpoint.transformer.bidirectional else 2
    return ExportEstimate(
        target=target.name,
        precision=target.precision,
        dtype=target.dtype,
        codes=tuple(sorted(quantised["transformer"].cache)),
        weights=weights,
        components=chosen,
        networks=plans,
        export_memory_bytes=_EXPORT_BYTES
        + _EXPORT_BYTES_PER_LAYER * (checkpoint.transformer.num_layers + checkpoint.text_encoder.num_hidden_layers),
        resident_bytes=engines["text_encoder"] + passes * engines["transformer"] + engines["vae"],
        reference_bytes=engines.get("vision", 0) + (passes - 1) * engines["transformer"],
        sequential_bytes=max(engines.values()),
    )


def estimate_seconds(
    checkpoint: Checkpoint, target: Target, quantised: Mapping[str, QuantisedNetwork], plan: ExportEstimate
) -> float:
    """Estimate the seconds of an export on this machine, with a trial of a second or two; see `export_seconds`."""
    entries = [
        entry
        for name in networks(plan.components)
        for entry in network_weights(checkpoint, name, target.dtype_of(name), quantised[name])
    ]
    return export_seconds(checkpoint, plan.components, entries, linked=plan.weights == "link")


def estimate_stages(
    checkpoint: Checkpoint, plan: ExportEstimate, width: int, height: int, references: Sequence[tuple[int, int]] = ()
) -> dict[str, int]:
    """Estimate the bytes that a process holds in each stage of a picture with reference images.

    See `stage_memory`.
    """
    weights = {network.network: network.engine_bytes for network in plan.networks}
    facts = model_facts(checkpoint)
    widths = StageWidths(checkpoint.vision.hidden_size, checkpoint.vae.base_dim, facts)
    return stage_memory(dims(checkpoint), widths, weights, width, height, references)


def estimate_cache(
    checkpoint: Checkpoint, plan: ExportEstimate, references: Sequence[tuple[int, int]]
) -> tuple[int, int]:
    """Return the tokens before the target with a prompt of usual length, and the bytes of their keys and values.

    Keys and values are in the dtype of the graphs, float32 on a CPU, or in FP8 where the attention is. A transformer
    with bidirectional attention keeps none.
    """
    if checkpoint.transformer.bidirectional:
        return 0, 0
    tokens = USUAL_PROMPT_TOKENS + sum(width // 16 * (height // 16) for width, height in references)
    return tokens, contract("step", dims(checkpoint), plan.dtype, plan.codes).cache_bytes(tokens)


def check_memory(plan: ExportEstimate) -> None:
    """Raise if there is too little memory for an export.

    Raises:
        QwenImageError: the export takes more memory than is free, swap included.
    """
    free = reachable_memory_bytes()
    if free is not None and free < plan.export_memory_bytes:
        raise QwenImageError(
            f"the export takes about {plan.export_memory_bytes} bytes of memory and {free} bytes are free, swap "
            "included; free some, or export on another machine: a bundle can be copied"
        )


def check_disk(plan: ExportEstimate, bundle: Path) -> int:
    """Return the free bytes of the disk that `bundle` would be on.

    Raises:
        QwenImageError: the bundle does not fit on the disk.
    """
    folder = with_home(bundle).absolute()
    while not folder.is_dir():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < plan.bundle_bytes:
        raise QwenImageError(
            f"{bundle}: the bundle takes {plan.bundle_bytes} bytes and {folder} has {free} free; "
            "make room, choose another disk, or export in fp32 with --weights link beside the checkpoint"
        )
    return free


def _read(checkpoint: Checkpoint, network: str, components: Collection[str]) -> list[TensorInfo]:
    """Return the tensors that the bundle reads: the graphs' weights, and the table that the host gathers from."""
    stored = checkpoint.stored(network)
    unread = () if network != "vae" or "vae_encoder" in components else _VAE_ENCODER
    read = [
        tensor
        for tensor in stored.tensors.values()
        if not tensor.name.startswith(unread) and not stored.may_stay_unread(tensor.name)
    ]
    return [*read, *_table(checkpoint, network)]


def _table(checkpoint: Checkpoint, network: str) -> list[TensorInfo]:
    return [checkpoint.token_embeddings()] if network == "text_encoder" else []


def _network(
    checkpoint: Checkpoint,
    name: str,
    target: Target,
    quantised: QuantisedNetwork,
    weights: Weights,
    components: Collection[str],
) -> NetworkEstimate:
    stored, read = checkpoint.stored(name), _read(checkpoint, name, components)
    names = {tensor.name for tensor in read}
    # What quantisation adds, such as scales, is named after what it belongs to and is always read.
    entries = network_weights(checkpoint, name, target.dtype_of(name), quantised)
    graphs = sum(entry_bytes(entry) for entry in entries if entry.name in names or entry.name not in stored.tensors)
    table = sum(tensor.nbytes for tensor in _table(checkpoint, name))
    return NetworkEstimate(
        network=name,
        dtypes=stored.dtypes,
        stored_parameters=stored.parameters,
        parameters=sum(tensor.elements for tensor in read),
        stored_bytes=stored.nbytes,
        bundle_bytes=0 if weights == "link" else graphs + table,
        engine_bytes=graphs,
    )
