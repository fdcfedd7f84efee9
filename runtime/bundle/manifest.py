"""The bundle's manifest: what is in a bundle, what it was made from, and the hash of every file.

`manifest.json` is written last, so a folder without one is no bundle; a file that it does not list is not loaded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from qwen_image_engine.engines.core.components import components_with
from qwen_image_engine.engines.core.contract import Contract, Dims, TensorSpec
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import whole_file
from qwen_image_engine.engines.cuda.compute_capability import least_compute_capability
from qwen_image_engine.engines.plans.entry import PlanEntry, Profile, Shape
from qwen_image_engine.runtime.bundle.manifest_entries import checkpoint_flags
from qwen_image_engine.runtime.model.facts import FACTS_SCHEMA, ModelFacts
from qwen_image_engine.runtime.system.json_schema import (
    OBJECT,
    TEXT,
    SchemaError,
    described,
    fields_of,
    is_count,
    is_list_of,
    is_whole,
    leaf,
    many,
    named,
    optional,
)

MANIFEST = "manifest.json"
FORMAT = "qwen-image-bundle"
SCHEMA = 6


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
    text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False) + "\n"
    with whole_file(folder / MANIFEST, temporary=folder / f".{MANIFEST}.partial", durable=True) as file:
        file.write(text.encode())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the bundle in `folder` and check its format. `runtime.bundle.files` checks the files.

    Raises:
        QwenImageError: there is none, or it is no JSON, of another schema version or not in the expected format.
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
    except SchemaError as error:
        raise QwenImageError(f"{path}: not in the expected format: {error}; export the bundle again") from error


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


def _manifest(document: Mapping[str, Any]) -> Manifest:
    data = {key: value for key, value in document.items() if key not in ("format", "schema")}
    _MANIFEST(data, "")
    files = {name: FileEntry(**entry) for name, entry in data["files"].items()}
    components = {name: _component(name, entry, files) for name, entry in data["components"].items()}
    plans = {name: _plan(name, entry, files) for name, entry in data.get("plans", {}).items()}
    if strange := set(plans) - set(components):
        raise SchemaError(f"plans of {', '.join(sorted(strange))}, which are no components of it")
    embeddings, calibration = data["embeddings"], data.get("calibration")
    _check_listed("embeddings.file", embeddings["file"], files)
    return Manifest(
        **{
            **data,
            "tool": Tool(**data["tool"]),
            "checkpoint": CheckpointEntry(**data["checkpoint"]),
            "dims": Dims(**data["dims"]),
            "facts": ModelFacts.from_json(data["facts"]),
            "embeddings": EmbeddingsEntry(**{**embeddings, "shape": tuple(embeddings["shape"])}),
            "components": components,
            "files": files,
            "loras": tuple(LoraEntry(**entry) for entry in data.get("loras", ())),
            "calibration": None if calibration is None else CalibrationEntry(**calibration),
            "plans": plans,
        }
    )


def _component(name: str, entry: Mapping[str, Any], files: Mapping[str, FileEntry]) -> ComponentEntry:
    fused = entry.get("fused_attentions")
    _check_listed(f"components.{name}.model", entry["model"], files)
    for index, weights in enumerate(entry["weights"]):
        _check_listed(f"components.{name}.weights[{index}]", weights, files)
    return ComponentEntry(
        **{
            **entry,
            "weights": tuple(entry["weights"]),
            "excluded_layers": tuple(entry["excluded_layers"]),
            "quantised_layers": {key: QuantisedLayer(**layer) for key, layer in entry["quantised_layers"].items()},
            "contract": Contract.from_json(entry["contract"]),
            "fp8_attention": {key: Fp8Scales(**scales) for key, scales in entry.get("fp8_attention", {}).items()},
            "fused_attentions": None if fused is None else tuple(fused),
        }
    )


def _plan(name: str, entry: Mapping[str, Any], files: Mapping[str, FileEntry]) -> PlanEntry:
    _check_listed(f"plans.{name}.file", entry["file"], files)
    profiles = tuple(
        Profile(item["name"], {key: _extents(shapes) for key, shapes in item["shapes"].items()})
        for item in entry["profiles"]
    )
    return PlanEntry(**{**entry, "profiles": profiles, "scratch_bytes": tuple(entry.get("scratch_bytes", ()))})


def _extents(shapes: Sequence[Sequence[int]]) -> tuple[Shape, Shape, Shape]:
    least, best, largest = map(tuple, shapes)
    return least, best, largest


def _check_listed(place: str, name: str, files: Mapping[str, FileEntry]) -> None:
    if name not in files:
        raise SchemaError(f"{place} is {described(name)}, which is not listed in files")


def _are_extents(value: Any) -> bool:
    if not is_list_of(value, lambda shape: isinstance(shape, list) and all(map(is_count, shape)), 3):
        return False
    least, best, largest = value
    return len(least) == len(best) == len(largest) and all(
        low <= middle <= high for low, middle, high in zip(least, best, largest, strict=True)
    )


def _check_files(value: Any, place: str) -> None:
    OBJECT(value, place)
    for name in value:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            raise SchemaError(f"{place} has the path {described(name)}, which leaves the bundle")
    named(fields_of(FileEntry))(value, place)


_EXTENTS = leaf("the least, best and largest shape, as lists of sizes above 0, in order", _are_extents)
_PROFILE = fields_of(Profile, shapes=named(_EXTENTS))
_AXIS = leaf("the name or the size of an axis", lambda value: isinstance(value, str) or is_whole(value))
_TENSORS = many(fields_of(TensorSpec, shape=many(_AXIS, least=0)), least=0)
_COMPONENT = fields_of(
    ComponentEntry,
    quantised_layers=named(fields_of(QuantisedLayer)),
    contract=fields_of(Contract, inputs=_TENSORS, outputs=_TENSORS),
    fp8_attention=named(fields_of(Fp8Scales)),
    fused_attentions=optional(many(TEXT, least=0)),
)
_MANIFEST = fields_of(
    Manifest,
    tool=fields_of(Tool),
    checkpoint=fields_of(CheckpointEntry),
    dims=fields_of(Dims),
    facts=FACTS_SCHEMA,
    embeddings=fields_of(EmbeddingsEntry, shape=leaf("two sizes", lambda value: is_list_of(value, is_whole, 2))),
    components=named(_COMPONENT),
    files=_check_files,
    origins=named(TEXT),
    loras=many(fields_of(LoraEntry), least=0),
    calibration=optional(fields_of(CalibrationEntry, settings=OBJECT)),
    plans=named(fields_of(PlanEntry, profiles=many(_PROFILE, least=0))),
    verify=optional(OBJECT),
)
