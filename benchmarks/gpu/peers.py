"""Contenders outside torch's reference for the same step: diffusers and ONNX Runtime on CUDA."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.common.synthetic_scales import SYNTHETIC, synthetic_calibration
from benchmarks.full_size.export_memory import write_checkpoint
from benchmarks.gpu.memory import Held
from benchmarks.gpu.network import SIGMA, Case, Run
from benchmarks.gpu.timings import Once, Rows, Steps, Way, engine_prefix_rows, one_line
from qwen_image_engine.engines.backends import load_engine, require
from qwen_image_engine.engines.core.device_array import DeviceArray
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.checkpoint.config import TransformerConfig
from qwen_image_engine.reference.networks.transformer import Transformer

DIFFUSERS = "diffusers eager"

LOAD_SECONDS = 60.0
"""Estimated time to load an exported graph [s]."""

EXPORT_SECONDS = 240.0
"""Estimated time to write 14 GB, trace two graphs of 32 blocks, and load them [s]."""


def peers(network: Transformer, values: Mapping[str, Any], work: Path) -> list[tuple[Way, Exported | None]]:
    """Return all contenders, an engine's with the exported graphs whose prefix is timed.

    Close each contender before the next is loaded. A contender that is missing gives the reason.

    Args:
        network: network whose weights the contenders run.
        values: configs by component, the network's among them.
        work: folder for checkpoint and graphs.
    """
    on_cuda = network.img_in.weight.device.type == "cuda"
    plain = ("onnxruntime-cuda", "cuda", "bf16") if on_cuda else ("onnxruntime", "cpu", "fp32")
    engines = [Exported(network, values, work, *way) for way in (plain, ("onnxruntime-cuda", "cuda", "fp8"))]
    return [
        (Way(DIFFUSERS, Diffusers(network), 20, missing_package("diffusers")), None),
        *((item.way(EXPORT_SECONDS if on_cuda else 10), item) for item in engines),
    ]


class Diffusers:
    """The contender with the transformer of diffusers on the same weights, and its own prefix cache."""

    def __init__(self, network: Transformer) -> None:
        self.network = network

    def __call__(self, case: Case) -> Run:
        from benchmarks.common.diffusers_classes import QwenImage21KVCache

        config, weight = self.network.config, self.network.img_in.weight
        with torch.device("meta"):
            model = _diffusers_model(config, config.num_layers)
        model.load_state_dict(self.network.state_dict(), assign=True)
        # Their tables are tensors that are no buffers, and were made on meta too.
        tables = _diffusers_model(config, 0)
        model.pos_embed, model.time_text_embed.time_proj = tables.pos_embed, tables.time_text_embed.time_proj
        model.eval()
        cache = QwenImage21KVCache(config.num_layers)
        for layer, pair in zip(cache.layer_caches, case.cache, strict=True):
            layer.store(*pair)
        prefix = case.cache[0][0].shape[1]
        slots = prefix + case.side**2 // 4  # the encoder's: one for 2 x 2 latent tokens
        arguments = {
            "hidden_states": case.latents,
            # Only their number counts: their keys and values are in the cache.
            "encoder_hidden_states": torch.zeros(
                1, prefix, config.context_in_dim, dtype=weight.dtype, device=weight.device
            ),
            "timestep": torch.full((1,), SIGMA, dtype=weight.dtype, device=weight.device),
            "img_shapes": [[(1, case.side, case.side)]],
            "img_mask": torch.arange(slots, device=weight.device)[None] >= prefix,
            "kv_cache": cache,
            "kv_cache_mode": "cached",
            "return_dict": False,
        }
        return lambda: model(**arguments)[0]


class TorchMemory:
    """The bytes of a tensor as a `DeviceMemory` of which only the address is read."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def address(self) -> int:
        return self.tensor.data_ptr()

    def allocate(self, nbytes: int) -> TorchMemory:
        raise NotImplementedError

    def copy(self, start: int, source: Any, source_start: int, nbytes: int) -> None:
        raise NotImplementedError

    def read(self, start: int, nbytes: int) -> Any:
        raise NotImplementedError


class Exported:
    """The step and the prefix on an engine, exported once from a checkpoint with the network's weights."""

    def __init__(
        self,
        network: Transformer,
        values: Mapping[str, Any],
        work: Path,
        engine: str,
        target: str,
        precision: str,
    ) -> None:
        self.network, self.values = network, values
        self.backend, self.target, self.precision = engine, target, precision
        self.work, self.folder = work, work / f"graphs-{target}-{precision}"
        self._written = Once(self._export)
        self.step, self.prefix = (
            Once(lambda component=component: self._load(component)) for component in ("step", "prefix")
        )

    @property
    def name(self) -> str:
        return f"{self.backend} {self.target} {self.precision}" + (f", {SYNTHETIC}" if self.precision == "fp8" else "")

    def prefix_rows(self, steps: Steps) -> Rows:
        """Yield the row of the prefix pass. It gives a reason instead if the step is not loaded."""
        missing = missing_engine(self.backend)
        if missing is None and self.step.made is None:
            missing = "the step has not been loaded"
        return engine_prefix_rows(steps, self.name, self.prefix, missing, LOAD_SECONDS)

    def way(self, seconds: float) -> Way:
        return Way(
            self.name,
            self,
            seconds,
            missing_engine(self.backend),
            held=Held(self.network.img_in.weight.device),
            is_ready=lambda: self.step.made is not None,
            close=self.close,
        )

    def close(self) -> None:
        """Free the engines, and delete their graphs on the disk."""
        self.step.close()
        self.prefix.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, case: Case) -> Run:
        device, engine, inputs = case.latents.device, self.step(), array_inputs(case)

        def step() -> Tensor:
            return torch.from_numpy(np.asarray(engine.run(inputs)["velocity"])).to(device)

        return step

    def _export(self) -> Any:
        from qwen_image_engine.calibration.quantise.network import quantised_networks
        from qwen_image_engine.export.bundle.network_folder import write_network
        from qwen_image_engine.export.targets import choose_target

        bundle = self.folder
        bundle.mkdir()
        checkpoint = Checkpoint.open(written_checkpoint(self.network, self.values, self.work))
        chosen = choose_target(self.target, self.precision)
        calibration = None if chosen.quantisation is None else synthetic_calibration(self.network)
        quantised = quantised_networks(checkpoint, chosen.quantisation, calibration)["transformer"]
        # Weights in the dtype of the graph are linked: 14 GB less to write.
        linked = chosen.quantisation is None and self.network.img_in.weight.dtype == getattr(torch, chosen.dtype)
        weights = "link" if linked else "copy"
        written = write_network(
            checkpoint, ("prefix", "step"), chosen, quantised, weights, bundle, {}, lambda what, count: None
        )
        return written.components

    def _load(self, component: str) -> Any:
        entry = self._written()[component]
        return load_engine(self.backend, self.folder / entry.model, entry.contract)


def _diffusers_model(config: TransformerConfig, layers: int) -> Any:
    from diffusers import QwenImage21Transformer2DModel

    return QwenImage21Transformer2DModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        num_layers=layers,
        attention_head_dim=config.attention_head_dim,
        num_attention_heads=config.num_attention_heads,
        context_in_dim=config.context_in_dim,
        mlp_ratio=config.mlp_ratio,
        axes_dims_rope=config.axes_dims_rope,
    )


def missing_package(name: str) -> str | None:
    try:
        importlib.import_module(name)
    except Exception as error:  # a library of another version may raise anything
        return one_line(error)
    return None


def missing_engine(name: str) -> str | None:
    try:
        require(name)
    except Exception as error:
        return one_line(error)
    return None


def written_checkpoint(network: Transformer, values: Mapping[str, Any], work: Path) -> Path:
    """Return a checkpoint with the network's weights, written once. Weights of other networks are holes."""
    folder = work / "full-size"
    if not folder.exists():
        write_checkpoint(folder, values=values, contents=False)
        (file,) = (folder / "transformer").glob("*.safetensors")
        save_file(dict(network.state_dict()), file, {"format": "pt"})
    return folder


def array_inputs(case: Case) -> dict[str, Any]:
    """Return the inputs of a step as engines take them. Keys and values stay on their device."""
    inputs: dict[str, Any] = {
        "latents": case.latents.float().cpu().numpy(),
        "time_features": case.features.cpu().numpy(),
        "cos": case.cos.cpu().numpy(),
        "sin": case.sin.cpu().numpy(),
    }
    for layer, pair in enumerate(case.cache):
        for name, tensor in zip(("key", "value"), pair, strict=True):
            inputs[f"{name}_{layer}"] = _values(tensor)
    return inputs


def _values(tensor: Tensor) -> Any:
    """Return keys or values without a copy: as a `DeviceArray` on the device, as numpy on a CPU."""
    if tensor.device.type != "cuda":
        return tensor.numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return DeviceArray(TorchMemory(tensor), tuple(tensor.shape), dtype)
