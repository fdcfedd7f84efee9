"""The entries of a bundle's manifest: its files, its sources, its components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwen_image_engine.engines.core.contract import CODES, Contract
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.compute_capability import least_compute_capability


@dataclass(frozen=True)
class FileEntry:
    """The entry of a file.

    Attributes:
        bytes: size of the file [bytes].
        sha256: SHA-256 of the file.
        header_sha256: SHA-256 of the header of a safetensors file; None for other files.
    """

    bytes: int
    sha256: str
    header_sha256: str | None = None


@dataclass(frozen=True)
class CheckpointEntry:
    """The checkpoint from which the bundle was made.

    Attributes:
        name: name of the checkpoint.
        path: folder of the checkpoint at the time of the export.
        licence: the checkpoint's licence.
        config_sha256: SHA-256 of the configuration files.
        weights_sha256: SHA-256 of the weights.
        transformer_file: single file of the transformer; None if the transformer came from the folder.
        attention: requested kind of attention; None if it came from the configuration.
        variant: variant of the weight files; None if they had none.
    """

    name: str
    path: str
    licence: str
    config_sha256: str
    weights_sha256: str
    transformer_file: str | None = None
    attention: str | None = None
    variant: str | None = None


@dataclass(frozen=True)
class LoraEntry:
    """An adapter that is merged into the transformer.

    Attributes:
        name: name of the adapter's file, or of the folder that was given.
        path: path of that file or folder at the time of the export.
        sha256: SHA-256 of the file with the adapter's weights.
        scale: factor of the adapter's weights that was given.
    """

    name: str
    path: str
    sha256: str
    scale: float

    def __str__(self) -> str:
        return f"{self.path}:{self.scale!r}" if self.scale != 1 else self.path


@dataclass(frozen=True)
class QuantisedLayer:
    """The quantisation of one linear.

    Attributes:
        precision: "int8" or "fp8".
        rotation: number of input channels that are rotated together; 1 without rotation.
        equalised_with: the previous or next linear, which shares the channels and was scaled together with this linear;
            None without equalisation.
        smoothing: alpha of SmoothQuant; None if the input is not smoothed.
        input_scale: scale of the input: the value of code 1; None if each token has a scale of its own.
        error_feedback: number of input channels in a block of error feedback: the rounding error of a weight is fed
            back to the weights of the block that are not yet rounded; 0 if weights are rounded to the nearest code.
    """

    precision: str
    rotation: int = 1
    equalised_with: str | None = None
    smoothing: float | None = None
    input_scale: float | None = None
    error_feedback: int = 0


@dataclass(frozen=True)
class Fp8Scales:
    """The scales of one block's FP8 attention: the value of code 1 of each input.

    The graph does not contain the scale of the probabilities: the build gives it to the attention layer.

    Attributes:
        query: scale of the queries over sqrt(d).
        key: scale of the keys.
        value: scale of the values.
        softmax: scale of the probabilities.
    """

    query: float
    key: float
    value: float
    softmax: float


@dataclass(frozen=True)
class CalibrationEntry:
    """The calibration of the static scales: the SHA-256 of its tensors, and its settings."""

    sha256: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ComponentEntry:
    """The entry of a component.

    Attributes:
        model: name of the graph in `Manifest.files`.
        weights: names in `Manifest.files` of the weight files that the graph reads.
        precision: precision of the weights and arithmetic that are not quantised.
        excluded_layers: linears that keep a higher precision.
        quantised_layers: quantisation of the linears that run in 8 bits, by name.
        opset: ONNX opset of the graph.
        ir_version: ONNX IR version of the graph.
        contract: tensors that the graph takes and returns.
        fp8_attention: scales of the blocks whose attention is FP8, by name.
        fused_attentions: nodes that a TensorRT plan must fuse; None if the exporter did not record them, for example
            for other targets.
    """

    model: str
    weights: tuple[str, ...]
    precision: str
    excluded_layers: tuple[str, ...]
    quantised_layers: Mapping[str, QuantisedLayer]
    opset: int
    ir_version: int
    contract: Contract
    fp8_attention: Mapping[str, Fp8Scales] = field(default_factory=dict)
    fused_attentions: tuple[str, ...] | None = None

    @property
    def softmax_scale(self) -> float | None:
        """Scale of the probabilities of the FP8 attentions; None if no attention is FP8.

        Raises:
            QwenImageError: the blocks have different scales.
        """
        scales = {item.softmax for item in self.fp8_attention.values()}
        if len(scales) > 1:
            raise QwenImageError(
                f"{self.contract.component}: its blocks have {len(scales)} softmax scales, expected one; export again"
            )
        return next(iter(scales), None)

    @property
    def least_compute_capability(self) -> float | None:
        """Minimum compute capability of a GPU that can run this graph; None if any GPU can."""
        precisions = {self.precision, *(layer.precision for layer in self.quantised_layers.values())}
        ports = (*self.contract.inputs, *self.contract.outputs)
        in_fp8 = bool(self.fp8_attention) or any(spec.dtype == CODES for spec in ports)
        return least_compute_capability(precisions | ({"fp8"} if in_fp8 else set()))


@dataclass(frozen=True)
class EmbeddingsEntry:
    """The place of the token embedding table, which is never loaded whole.

    Attributes:
        file: name of the file that holds the table.
        offset: offset of the table's first byte in the file.
        dtype: dtype in the checkpoint: "bfloat16", "float16" or "float32".
        shape: shape of the table, (vocabulary, hidden), row-major.
    """

    file: str
    offset: int
    dtype: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class Tool:
    """The tool that wrote the bundle: its version, and a hash of the exporter's source and of the packages it used."""

    version: str
    source_sha256: str
