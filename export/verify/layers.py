"""Errors by layer of the transformer: each linear and block of a bundle's step against the reference's own.

Errors add up through depth, so a row shows all errors up to it. A row where errors begin is far above all rows before
it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from qwen_image_engine.engines.backends import find_backend, load_engine
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import contract
from qwen_image_engine.engines.core.device_array import on_host
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.export.verify.cache_codes import CacheCodes
from qwen_image_engine.export.verify.difference import Difference, difference, finite, worst
from qwen_image_engine.export.verify.layer_outputs import layer_graph, scaled_layers
from qwen_image_engine.export.verify.recording import Recording, ends
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.torch_engine import TorchEngine
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.tools.compare.measures import RELATIVE_L2, other_measures


@dataclass(frozen=True)
class Layer:
    """The errors of a linear or block, by the network's name for it.

    Attributes:
        name: name in `reference.transformer`: "transformer_blocks.3.attn.to_q", "transformer_blocks.3".
        runs: differences of the first step and the last step of each case.
        growth: worst relative L2 of the runs over the worst of all layers before, or over the component's threshold if
            no layer before is beyond it.
    """

    name: str
    runs: tuple[Difference, ...]
    growth: float

    @property
    def worst(self) -> Difference:
        """Worst of each measure over the runs."""
        return worst(self.runs)

    def cells(self) -> dict[str, str]:
        """Return the layer's texts by column, for tables of the terminal and of pages."""
        others = other_measures()
        return {
            "layer": self.name,
            RELATIVE_L2.heading: RELATIVE_L2.text(self.worst.relative_l2),
            "growth": f"{self.growth:.1f}x" if self.growth > 1 else "",
            **dict(zip((measure.heading for measure in others), self.worst.texts(others), strict=True)),
        }

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON; a value that is not finite is null."""
        return {
            "layer": self.name,
            **self.worst.to_json(),
            "growth": finite(self.growth),
            "relative_l2_by_run": [finite(run.relative_l2) for run in self.runs],
        }


@dataclass(frozen=True)
class Layers:
    """The layers of a component, in the order in which they run.

    Attributes:
        component: "step", or "joint" if attention is bidirectional.
        runs: case and sigma of each run.
        layers: errors of the layers, one for each row.
        scaled: linears without a row, because export scaled their channels for the linear that reads them.
    """

    component: str
    runs: tuple[tuple[str, float], ...]
    layers: tuple[Layer, ...]
    scaled: tuple[str, ...]

    @property
    def note(self) -> str:
        """A sentence about the linears without a row; "" if there are none."""
        count = len(self.scaled)
        return f"{count} linears have no row: their channels are scaled for the linear after them" if count else ""

    @property
    def grows_most_at(self) -> Layer | None:
        """The layer with the largest growth; None if no layer is beyond the component's threshold."""
        found = max(self.layers, key=lambda layer: layer.growth)
        return found if found.growth > 1 else None

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        most = self.grows_most_at
        return {
            "component": self.component,
            "runs": [{"case": case, "sigma": sigma} for case, sigma in self.runs],
            "grows_most_at": None if most is None else most.name,
            "rows": [layer.to_json() for layer in self.layers],
            "scaled": list(self.scaled),
        }


def compare_layers(
    bundle: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    recordings: Sequence[Recording],
    threshold: float,
    engine: str,
    threads: int | None,
) -> Layers:
    """Run a bundle's step and the reference on the reference's inputs, and compare every layer's output.

    The engine fuses the graph a little differently if it must output inner values. The effect is rounding, nothing
    more.

    Raises:
        QwenImageError: the engine cannot load the graph, or a run fails.
        OSError: the copy of the graph cannot be written.
    """
    component = manifest.facts.step
    entry, prefix = manifest.components[component], checkpoint.stored(COMPONENTS[component].network).layout.prefix
    network = load_network(checkpoint, COMPONENTS[component].network)
    reference = TorchEngine(contract(component, manifest.dims), network)
    codes = CacheCodes(entry.contract, manifest)
    found: dict[str, list[Difference]] = {}
    runs = []
    with (
        layer_graph(bundle, entry, prefix) as graph,
        closing(load_engine(engine, graph.model, graph.contract, threads)) as running,
    ):
        for recording in recordings:
            sigmas = ends(recording.sigmas)
            for call, sigma in zip(ends(recording.calls[component]), sigmas, strict=True):
                outputs = running.run(codes.inputs(call.inputs))
                with _kept(network, graph.outputs) as expected:
                    reference.run(call.inputs)
                for layer, array in expected.items():
                    rows = on_host(outputs[graph.outputs[layer]])
                    found.setdefault(layer, []).append(difference(rows, array.reshape(rows.shape)))
                runs.append((recording.case.name, sigma))
    scaled = sorted(name.removeprefix(prefix) for name in scaled_layers(entry.quantised_layers))
    return Layers(component, tuple(runs), tuple(_grown(found, threshold)), tuple(scaled))


def check_layers(engine: str) -> None:
    """Raise if an engine runs plans, which have no outputs but those that they were built with.

    Raises:
        UsageError: the engine runs plans.
    """
    if find_backend(engine).create is None:
        raise UsageError(
            f"--layers with --engine {engine}: a built engine gives its outputs alone; see layers of the same graphs "
            "on a CPU, exported with --target tensorrt-twin"
        )


@contextmanager
def _kept(network: nn.Module, names: Collection[str]) -> Iterator[dict[str, Array]]:
    """Yield the outputs of modules by name, in the order in which the modules run.

    A block also returns its cache, which is left out.
    """
    kept: dict[str, Array] = {}

    def keep(module: nn.Module, inputs: Any, output: Any, *, name: str) -> None:
        states: Tensor = output[0] if isinstance(output, tuple) else output
        kept[name] = states.float().cpu().numpy()

    handles = [network.get_submodule(name).register_forward_hook(partial(keep, name=name)) for name in names]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _grown(found: Mapping[str, Sequence[Difference]], threshold: float) -> Iterator[Layer]:
    before = threshold
    for name, runs in found.items():
        error = worst(runs).relative_l2
        yield Layer(name, tuple(runs), error / before if math.isfinite(before) else 0.0)
        before = max(before, error)
