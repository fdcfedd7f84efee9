"""The folder of one network in a bundle: the graphs, and the weights that they share."""

from __future__ import annotations

import itertools
import os
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from qwen_image_engine.calibration.quantise.fp8 import SOFTMAX
from qwen_image_engine.calibration.quantise.network import QuantisedNetwork
from qwen_image_engine.calibration.rules.linears import WEIGHT
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import Dims, contract
from qwen_image_engine.engines.core.dtypes import DTYPES, STORED_FLOATS
from qwen_image_engine.export.checks.onnxruntime_audit import audit
from qwen_image_engine.export.graph.fused_attention import fused_attentions
from qwen_image_engine.export.passes.quantised.fp8_attention import fp8_scale_name
from qwen_image_engine.export.targets import Target, networks
from qwen_image_engine.export.trace import IR_VERSION, OPSET, trace
from qwen_image_engine.export.weights.external_data import link_weights, place_weights
from qwen_image_engine.export.weights.network import network_weights
from qwen_image_engine.export.weights.weight_file import Entry, Place, Stored, WeightFile
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.storage.tensor_file import TensorInfo
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.bundle.manifest_entries import (
    ComponentEntry,
    EmbeddingsEntry,
    FileEntry,
    Fp8Scales,
    QuantisedLayer,
)
from qwen_image_engine.runtime.system.files import file_sha256

MODEL_FILES = {
    row.name: f"{row.network}/{row.name.removeprefix(f'{row.network}_') if row.name != row.network else 'model'}.onnx"
    for row in COMPONENTS.values()
}
"""Graph files in a bundle by component: "transformer/step.onnx", "vae/decoder_up.onnx", "vision/model.onnx"."""

Progress = Callable[[str, int], None]
"""Callback with the current stage and the number of bytes done since the last call."""


@dataclass(frozen=True)
class NetworkFolder:
    """The entries that one network's folder adds to the manifest.

    Attributes:
        components: entries of the graphs, by component.
        describe_files: function that returns the entries of the files. It waits for the hashes of linked files, so the
            manifest calls it when all graphs are traced.
        embeddings: place of the token embeddings in the text encoder's folder; None for any other network.
    """

    components: Mapping[str, ComponentEntry]
    describe_files: Callable[[], Mapping[str, FileEntry]]
    embeddings: EmbeddingsEntry | None


def write_network(
    checkpoint: Checkpoint,
    components: Sequence[str],
    target: Target,
    quantised: QuantisedNetwork,
    weights: str,
    bundle: Path,
    hashes: Mapping[Path, str],
    progress: Progress,
) -> NetworkFolder:
    """Write the folder of a network into `bundle`: the graphs of `components`, and the weights that they read.

    `quantised` says how the network is quantised. `hashes` has the SHA-256 of the network's weight files in the
    checkpoint.

    Raises:
        QwenImageError: the checkpoint's tensors do not match the network, cannot be read, or cannot be linked; or ONNX
            Runtime does not run a quantised linear as a product of integers.
        OSError: the bundle cannot be written.
    """
    (network,) = networks(components)
    entries = network_weights(checkpoint, network, target.dtype_of(network), quantised)
    graphs = {}
    for component in components:
        progress(f"graph of {component}", 0)
        graphs[component] = lowered(checkpoint, component, target, quantised)

    folder = bundle / network
    folder.mkdir()
    stage = f"weights of {network}"
    progress(stage, 0)
    table = checkpoint.token_embeddings() if network == "text_encoder" else None
    if weights == "link":
        files = _linked(checkpoint, network, table, folder)
    else:
        files = _copied(entries, graphs, table, folder, lambda count: progress(stage, count))

    sizes, described = dims(checkpoint), {}
    for component, graph in graphs.items():
        weights_read = [f"{network}/{name}" for name in _saved(graph, files.places, bundle / MODEL_FILES[component])]
        described[component] = _entry(component, graph, target, quantised, weights_read, sizes)
        layers = described[component].quantised_layers
        if layers and target.audited:
            progress(f"audit of {component}", 0)
            audit(bundle / MODEL_FILES[component], [name + WEIGHT for name in layers])

    def describe_files() -> dict[str, FileEntry]:
        return {
            f"{network}/{path.name}": describe_file(
                path, hashes[files.linked[path.name]] if path.name in files.linked else files.written.get(path.name)
            )
            for path in sorted(folder.iterdir())
        }

    return NetworkFolder(described, describe_files, None if table is None else _embeddings(network, table, files))


@dataclass(frozen=True)
class _WeightFiles:
    """The weight files of a network's folder.

    Attributes:
        places: place of each tensor, by stored name.
        written: SHA-256 of each new file, by name.
        linked: the checkpoint's files that may be linked here, by name.
    """

    places: Mapping[str, Place]
    written: Mapping[str, str]
    linked: Mapping[str, Path]


def _linked(checkpoint: Checkpoint, network: str, table: TensorInfo | None, folder: Path) -> _WeightFiles:
    """Link the checkpoint's files that hold the tensors of the network."""
    stored = checkpoint.stored(network)
    tensors = [*read_tensors(checkpoint, network), *([table] if table else [])]
    return _WeightFiles(link_weights(stored, tensors, folder), {}, {file.name: file for file in stored.files})


def _copied(
    entries: Sequence[Entry],
    graphs: Mapping[str, ir.Model],
    table: TensorInfo | None,
    folder: Path,
    advance: Callable[[int], None],
) -> _WeightFiles:
    """Write the weights that the graphs read, and the token embeddings that the host gathers from."""
    read = {name for graph in graphs.values() for name in graph.graph.initializers}
    copies = [WeightFile("weights.safetensors", [entry for entry in entries if entry.name in read])]
    if table is not None:
        copies.append(WeightFile("embeddings.safetensors", [Stored(table, table.dtype)]))
    places: dict[str, Place] = {}
    written: dict[str, str] = {}
    for file in copies:
        written[file.name] = file.write(folder, advance)
        places.update(file.places())
    return _WeightFiles(places, written, {})


def _saved(graph: ir.Model, places: Mapping[str, Place], path: Path) -> tuple[str, ...]:
    """Save a graph with its external data at `places`, and return the names of the weight files that it reads."""
    used = place_weights(graph, places)
    _number(graph.graph)
    ir.save(graph, path)
    return used


def _entry(
    component: str, graph: ir.Model, target: Target, quantised: QuantisedNetwork, weights: Sequence[str], sizes: Dims
) -> ComponentEntry:
    """Return the manifest entry of a graph that reads `weights`."""
    dtype, initializers = target.dtype_of(COMPONENTS[component].network), graph.graph.initializers
    layers = {
        name: _described(name, layer, component, quantised)
        for name, layer in quantised.layers.items()
        if name + WEIGHT in initializers
    }
    attention = {
        block: Fp8Scales(*item.scales(), softmax=SOFTMAX)
        for block, item in quantised.attention.items()
        if fp8_scale_name(block, "query") in initializers
    }
    return ComponentEntry(
        model=MODEL_FILES[component],
        weights=tuple(weights),
        precision=target.precision if layers or attention else DTYPES[dtype].precision,
        excluded_layers=_linears(graph) if layers else (),
        quantised_layers=layers,
        opset=OPSET,
        ir_version=IR_VERSION,
        contract=contract(component, sizes, dtype, quantised.cache),
        fp8_attention=attention,
        fused_attentions=fused_attentions(graph.graph) if target.runs_plans else None,
    )


def _embeddings(network: str, table: TensorInfo, files: _WeightFiles) -> EmbeddingsEntry:
    place, (rows, hidden) = files.places[table.name], table.shape
    return EmbeddingsEntry(f"{network}/{place.file}", place.offset, STORED_FLOATS[table.dtype].name, (rows, hidden))


def reuse_network(
    previous: Manifest, old: Path, network: str, bundle: Path, hashes: Mapping[Path, str]
) -> NetworkFolder | None:
    """Reuse a network's folder of the bundle `old` in `bundle`; return None if a file has changed.

    A file has changed if it differs from the manifest `previous`. A file that is a link to a file of the checkpoint,
    whose SHA-256 `hashes` has, is not read again.
    """
    linked = {_identity(file): sha256 for file, sha256 in hashes.items()}
    files = {name: entry for name, entry in previous.files.items() if name.startswith(f"{network}/")}
    for name, entry in files.items():
        path = old / name
        if not path.is_file() or (linked.get(_identity(path)) or file_sha256(path)) != entry.sha256:
            return None
    (bundle / network).mkdir()
    for name in files:
        try:
            os.link(old / name, bundle / name)
        except OSError:
            shutil.copyfile(old / name, bundle / name)
    components = {
        name: entry
        for name, entry in previous.components.items()
        if name in COMPONENTS and COMPONENTS[name].network == network
    }
    return NetworkFolder(components, lambda: files, previous.embeddings if network == "text_encoder" else None)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def lowered(checkpoint: Checkpoint, component: str, target: Target, quantised: QuantisedNetwork) -> ir.Model:
    """Return the graph of `component` after the target's passes; its weights have no external data yet."""
    model = trace(checkpoint, component, target.dtype_of(COMPONENTS[component].network))
    for lowering in target.passes():
        lowering()(model)
    for quantising in target.quantising():
        quantising(quantised)(model)  # no clean-up after it: that would merge zero points that must stay apart
    return model


def _number(graph: ir.Graph) -> None:
    """Number nodes and values without a name of their own from zero.

    torch and onnx-ir count on through a process, so the hash of a graph would depend on the graphs traced before it.
    """
    counted = itertools.count()
    values = [*graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    for value in values:
        if re.fullmatch(r"val_\d+", value.name or ""):
            value.name = f"unnamed_{next(counted)}"
    for index, node in enumerate(graph):
        node.name = f"{node.op_type}_{index}"


def _described(name: str, layer: QuantisedLayer, component: str, quantised: QuantisedNetwork) -> QuantisedLayer:
    """Return the layer with what calibration computed for its input in a component; unchanged without calibration."""
    item = quantised.inputs.get(name)
    if item is None:
        return layer
    alpha = item.smoothing.alpha if item.smooth else None
    gram = item.statistics[component].gram
    return replace(
        layer, smoothing=alpha, input_scale=item.scale(component, layer.precision), error_feedback=gram.shape[-1]
    )


def _linears(model: ir.Model) -> tuple[str, ...]:
    """Return the names of a graph's linears whose weights are not quantised."""
    weights = [node.inputs[1] for node in model.graph if node.op_type == "Gemm"]
    names = [value.name or "" for value in weights if value is not None and value.is_initializer()]
    return tuple(sorted(name.removesuffix(WEIGHT) for name in names))
