"""The bundle's manifest: what is in a bundle, what it was made from, and the hash of every file.

`manifest.json` is written last, so a folder without one is no bundle; a file that it does not list is not loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from qwen_image_engine.engines.core.components import components_with
from qwen_image_engine.engines.core.contract import Contract, Dims
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.compute_capability import least_compute_capability
from qwen_image_engine.engines.plans.entry import PlanEntry, Profile, Shape
from qwen_image_engine.runtime.bundle.manifest_entries import checkpoint_flags
from qwen_image_engine.runtime.model.facts import ModelFacts

MANIFEST = "manifest.json"
FORMAT = "qwen-image-bundle"
SCHEMA = 6

T = TypeVar("T")


@dataclass(frozen=True)
class FileEntry:
    """One file: its size, the SHA-256 of its bytes, and of a safetensors file the SHA-256 of its header alone."""

    bytes: int
    sha256: str
    header_sha256: str | None = None


@dataclass(frozen=True)
class CheckpointEntry:
    """The checkpoint that the bundle was made from; `path` is where it was then.

    `transformer_file` is the single file that its transformer came from, None where that was in the folder; `attention`
    is what was asked for, None where it is the configuration's.
    """

    name: str
    path: str
    licence: str
    config_sha256: str
    weights_sha256: str
    transformer_file: str | None = None
    attention: str | None = None


@dataclass(frozen=True)
class LoraEntry:
    """An adapter that is merged into the transformer: its file's name, where that was then, its hash, how strongly."""

    name: str
    path: str
    sha256: str
    scale: float

    def __str__(self) -> str:
        return f"{self.path}:{self.scale!r}" if self.scale != 1 else self.path


@dataclass(frozen=True)
class QuantisedLayer:
    """How one linear is quantised.

    Attributes:
        precision: "int8" or "fp8".
        rotation: input channels that are rotated together, 1 where none are.
        equalised_with: the linear before or after it that shares its channels and was scaled with it.
        smoothing: alpha of SmoothQuant, None where its input is not smoothed.
        input_scale: the value of code 1 of its input, None where each token has a scale of its own.
        error_feedback: input channels within which the error of rounding a weight is fed back to those not yet rounded,
            0 where weights go to the nearest code.
    """

    precision: str
    rotation: int = 1
    equalised_with: str | None = None
    smoothing: float | None = None
    input_scale: float | None = None
    error_feedback: int = 0


@dataclass(frozen=True)
class Fp8Scales:
    """FP8 attention of one block: the value of code 1 of queries over sqrt(d), keys, values and probabilities.

    The last stands in no graph: whoever builds an engine gives it to the attention as its own.
    """

    query: float
    key: float
    value: float
    softmax: float


@dataclass(frozen=True)
class CalibrationEntry:
    """The calibration that static scales come from: the SHA-256 of its tensors, and its settings."""

    sha256: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class ComponentEntry:
    """One graph. `model` and the `weights` that it reads are names in `Manifest.files`.

    `quantised_layers` are the linears that run in 8 bits; `excluded_layers` those that keep a higher precision;
    `fp8_attention` are the blocks whose attention is FP8. `fused_attentions` are the nodes that a TensorRT engine must
    fuse; None where the exporter did not say, as for other targets.
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
        """Of the probabilities of its FP8 attentions, None where none is FP8.

        Raises:
            QwenImageError: they have more than one.
        """
        scales = {item.softmax for item in self.fp8_attention.values()}
        if len(scales) > 1:
            raise QwenImageError(
                f"{self.contract.component}: its blocks have {len(scales)} softmax scales, expected one; export again"
            )
        return next(iter(scales), None)

    @property
    def least_compute_capability(self) -> float | None:
        """Of a GPU that can run this graph; None where any can."""
        precisions = {self.precision, *(layer.precision for layer in self.quantised_layers.values())}
        return least_compute_capability(precisions | ({"fp8"} if self.fp8_attention else set()))


@dataclass(frozen=True)
class EmbeddingsEntry:
    """The token embedding table: `shape` (vocabulary, hidden) row-major at byte `offset` of `file`, never loaded whole.

    `dtype` is "bfloat16", "float16" or "float32", as the checkpoint stores it.
    """

    file: str
    offset: int
    dtype: str
    shape: tuple[int, int]


@dataclass(frozen=True)
class Tool:
    """What wrote the bundle: the version, and a hash of the exporter's own source and of the packages it used."""

    version: str
    source_sha256: str


@dataclass(frozen=True)
class Manifest:
    """A bundle's contents. Paths are relative to the bundle, with slashes.

    `weights` is "copy" or "link". `origins` maps each network's folder to a hash of all that it was made from: equal
    hashes make equal folders. `loras` are in the order in which they were merged. `calibration` is None where no scale
    comes from one. `plans` are the engines that `qwen-image build` made, by component. `verify` is the last result of
    `qwen-image verify`, None before the first.
    """

    tool: Tool
    target: str
    precision: str
    weights: str
    checkpoint: CheckpointEntry
    dims: Dims
    facts: ModelFacts
    embeddings: EmbeddingsEntry
    components: Mapping[str, ComponentEntry]
    files: Mapping[str, FileEntry]
    origins: Mapping[str, str] = field(default_factory=dict)
    loras: tuple[LoraEntry, ...] = ()
    calibration: CalibrationEntry | None = None
    plans: Mapping[str, PlanEntry] = field(default_factory=dict)
    verify: Mapping[str, Any] | None = None

    @property
    def flags(self) -> str:
        """How the command is told to open the checkpoint."""
        source = self.checkpoint
        return checkpoint_flags(source.path, source.transformer_file, map(str, self.loras), source.attention)

    @property
    def absent_for_references(self) -> tuple[str, ...]:
        """Names of the components that reference images need and the bundle is without, optional ones first."""
        needed = [row for row in components_with(self.facts.attention) if row.needs_reference_images]
        needed.sort(key=lambda row: not row.optional)
        return tuple(row.name for row in needed if row.name not in self.components)

    def to_json(self) -> dict[str, Any]:
        """The object that manifest.json holds."""
        return {"format": FORMAT, "schema": SCHEMA, **asdict(self)}


def is_bundle(folder: Path) -> bool:
    """Whether `folder` has a manifest of any schema version."""
    try:
        data = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json atomically: under a temporary name, then renamed.

    Raises:
        OSError: it cannot be written.
    """
    temporary = folder / f".{MANIFEST}.partial"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(manifest.to_json(), file, indent=1, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / MANIFEST)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_manifest(folder: Path) -> Manifest:
    """The manifest of the bundle in `folder`, checked in form. Files are checked by `bundle_files`.

    Raises:
        QwenImageError: there is none, it is no JSON, of another schema version, or has missing or misshapen values.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        state = "is no bundle: no manifest.json in it" if folder.is_dir() else "does not exist"
        raise QwenImageError(f"{folder}: {state}; make one with: qwen-image export -m CHECKPOINT {folder}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise QwenImageError(f"{path}: cannot be read ({error})") from error
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise QwenImageError(f"{path}: is not JSON ({error}); export the bundle again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise QwenImageError(f'{path}: is not the manifest of a bundle: no "format": "{FORMAT}" in it')
    if data.get("schema") != SCHEMA:
        source = data["checkpoint"].get("path") if isinstance(data.get("checkpoint"), dict) else None
        raise QwenImageError(
            f"{path}: schema version {data.get('schema')!r}, this version reads {SCHEMA}; export again with: "
            f"qwen-image export -m {source or 'CHECKPOINT'} {folder}"
        )
    try:
        return _manifest(data)
    except (KeyError, TypeError, ValueError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise QwenImageError(f"{path}: misshapen: {what}; export the bundle again") from error


def record_verification(folder: Path, result: Mapping[str, Any]) -> None:
    """Keep the result of `verify` in the manifest of the bundle in `folder`, atomically.

    Raises:
        QwenImageError: the folder is no bundle, or its manifest cannot be written.
    """
    manifest = replace(read_manifest(folder), verify=result)
    try:
        write_manifest(folder, manifest)
    except OSError as error:
        raise QwenImageError(f"{folder / MANIFEST}: cannot be written ({error.strerror or error})") from error


def _manifest(data: Mapping[str, Any]) -> Manifest:
    files = {_path(name): _entry(FileEntry, entry) for name, entry in _mapping(data["files"], "files").items()}
    components = {
        str(name): _component(entry, files) for name, entry in _mapping(data["components"], "components").items()
    }
    embeddings, facts = _mapping(data["embeddings"], "embeddings"), _mapping(data["facts"], "facts")
    rows, hidden = (int(size) for size in embeddings["shape"])
    verify, calibration = data["verify"], data["calibration"]
    plans = {str(name): _plan(entry, files) for name, entry in _mapping(data["plans"], "plans").items()}
    if strange := set(plans) - set(components):
        raise ValueError(f"plans of {', '.join(sorted(strange))}, which are no components of it")
    return Manifest(
        tool=_entry(Tool, data["tool"]),
        target=str(data["target"]),
        precision=str(data["precision"]),
        weights=str(data["weights"]),
        checkpoint=_entry(CheckpointEntry, data["checkpoint"]),
        dims=_entry(Dims, data["dims"]),
        facts=ModelFacts.from_json(facts),
        embeddings=EmbeddingsEntry(
            _listed(embeddings["file"], files), int(embeddings["offset"]), str(embeddings["dtype"]), (rows, hidden)
        ),
        components=components,
        files=files,
        origins={str(name): str(value) for name, value in _mapping(data["origins"], "origins").items()},
        loras=tuple(_entry(LoraEntry, entry) for entry in data.get("loras", ())),
        calibration=None if calibration is None else _calibration(calibration),
        plans=plans,
        verify=None if verify is None else _mapping(verify, "verify"),
    )


def _calibration(data: Any) -> CalibrationEntry:
    entry = _mapping(data, "calibration")
    return CalibrationEntry(str(entry["sha256"]), _mapping(entry["settings"], "the calibration's settings"))


def _component(data: Any, files: Mapping[str, FileEntry]) -> ComponentEntry:
    entry = _mapping(data, "a component")
    fused = entry.get("fused_attentions")
    return ComponentEntry(
        model=_listed(entry["model"], files),
        weights=tuple(_listed(name, files) for name in entry["weights"]),
        precision=str(entry["precision"]),
        excluded_layers=tuple(str(name) for name in entry["excluded_layers"]),
        quantised_layers={
            str(name): _entry(QuantisedLayer, layer)
            for name, layer in _mapping(entry["quantised_layers"], "quantised_layers").items()
        },
        opset=int(entry["opset"]),
        ir_version=int(entry["ir_version"]),
        contract=Contract.from_json(entry["contract"]),
        fp8_attention={
            str(block): _entry(Fp8Scales, scales)
            for block, scales in _mapping(entry["fp8_attention"], "fp8_attention").items()
        },
        fused_attentions=None if fused is None else tuple(str(name) for name in fused),
    )


def _plan(data: Any, files: Mapping[str, FileEntry]) -> PlanEntry:
    entry = _mapping(data, "a plan")
    return PlanEntry(
        file=_listed(entry["file"], files),
        key=str(entry["key"]),
        tensorrt=str(entry["tensorrt"]),
        gpu=str(entry["gpu"]),
        compute_capability=str(entry["compute_capability"]),
        driver=int(entry["driver"]),
        profiles=tuple(_profile(item) for item in entry["profiles"]),
        stripped=bool(entry["stripped"]),
        weight_streaming=bool(entry["weight_streaming"]),
        scratch_bytes=tuple(int(size) for size in entry["scratch_bytes"]),
        fused_attentions=int(entry["fused_attentions"]),
        fp8_products=int(entry["fp8_products"]),
        int8_products=int(entry["int8_products"]),
    )


def _profile(data: Any) -> Profile:
    entry = _mapping(data, "a profile")
    shapes = {str(name): _extents(name, value) for name, value in _mapping(entry["shapes"], "shapes").items()}
    return Profile(str(entry["name"]), shapes)


def _extents(name: object, value: Any) -> tuple[Shape, Shape, Shape]:
    least, best, largest = (tuple(int(size) for size in shape) for shape in value)
    if not len(least) == len(best) == len(largest) or any(
        not 0 < low <= middle <= high for low, middle, high in zip(least, best, largest, strict=True)
    ):
        raise ValueError(f"a profile's shapes of {name!r} are {value!r}, expected least, best and largest in order")
    return least, best, largest


def _entry(kind: type[T], data: Any) -> T:
    """A flat dataclass of strings, numbers and None; its fields' annotations are not interpreted."""
    values = _mapping(data, kind.__name__)
    if not all(value is None or isinstance(value, str | int | float) for value in values.values()):
        raise TypeError(f"{kind.__name__} holds {values!r}")
    return kind(**values)


def _mapping(data: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(data, Mapping):
        raise TypeError(f"{what} is {data!r}, expected an object")
    return data


def _path(name: Any) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise ValueError(f"the path {name!r} leaves the bundle")
    return str(name)


def _listed(name: Any, files: Mapping[str, FileEntry]) -> str:
    if name not in files:
        raise ValueError(f"the file {name!r} is not listed")
    return str(name)
