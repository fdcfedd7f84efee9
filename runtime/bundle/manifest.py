"""The bundle's manifest: the contents of a bundle, its sources, and the hash of every file.

`manifest.json` is written last, so a folder without a manifest is no bundle. A file that the manifest does not list is
not loaded.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from qwen_image_engine.engines.core.components import components_with
from qwen_image_engine.engines.core.contract import CONTRACTS, Contract, Dims, TensorSpec
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import leads_out, read_regular, whole_file
from qwen_image_engine.engines.plans.bound_weight import BoundWeight, WeightPiece
from qwen_image_engine.engines.plans.entry import BUILDERS, PlanEntry, Profile, Shape
from qwen_image_engine.runtime.bundle.bound_lists import LISTS, list_of, with_digests, with_pieces
from qwen_image_engine.runtime.bundle.checkpoint_flags import checkpoint_flags
from qwen_image_engine.runtime.bundle.consistency import (
    DIMS_SCHEMA,
    check_contracts,
    check_facts,
    check_plans,
    check_table,
)
from qwen_image_engine.runtime.bundle.manifest_entries import (
    CalibrationEntry,
    CheckpointEntry,
    ComponentEntry,
    EmbeddingsEntry,
    FileEntry,
    Fp8Scales,
    LoraEntry,
    QuantisedLayer,
    Tool,
)
from qwen_image_engine.runtime.model.facts import FACTS_SCHEMA, ModelFacts
from qwen_image_engine.runtime.system.json_schema import (
    MAX_JSON_BYTES,
    OBJECT,
    TEXT,
    SchemaError,
    described,
    fields_of,
    is_count,
    is_list_of,
    is_name,
    is_whole,
    leaf,
    many,
    named,
    optional,
    parse,
)
from qwen_image_engine.runtime.system.text import command_line

MANIFEST = "manifest.json"
FORMAT = "qwen-image-bundle"
SCHEMA = 9
"""Version of the manifest's form. Manifests of 8, with one weight an input, of 7, without bound weights, and of 6, with
one plan a component at most, are read too."""

_ONE_PIECE, _NO_BOUND_WEIGHTS, _ONE_PLAN = 8, 7, 6

_LONGEST_PATH = 4096
_FACTS_SHA256 = "facts_sha256"
_DECIDING = ("target", "precision", "dims", "facts", "embeddings", "components")


@dataclass(frozen=True)
class Manifest:
    """The contents of a bundle. Paths are relative to the bundle, with slashes.

    Attributes:
        tool: tool that wrote the bundle.
        target: target of the export, which decides the backends that run the graphs.
        precision: precision of the export.
        weights: "copy" or "link".
        checkpoint: checkpoint from which the bundle was made.
        dims: sizes of the checkpoint that the contracts name.
        facts: facts of the model.
        embeddings: place of the token embedding table.
        components: entries of the components, by name.
        files: entries of all files, by path.
        origins: cache key of each network's folder, a hash of all its sources: equal keys make equal folders.
        loras: merged adapters, in the order of merging.
        calibration: calibration of the static scales; None if no scale comes from a calibration.
        plans: plans of `qwen-image build`, by component; a component has one plan for each builder and each set of
            compute capabilities.
        verify: last result of `qwen-image verify`; None before the first.
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
    plans: Mapping[str, tuple[PlanEntry, ...]] = field(default_factory=dict)
    verify: Mapping[str, Any] | None = None

    @property
    def flags(self) -> str:
        """Flags with which the command opens the checkpoint."""
        source = self.checkpoint
        loras = map(str, self.loras)
        return checkpoint_flags(source.path, source.transformer_file, loras, source.attention, source.variant)

    def export_command(self, folder: str | Path) -> str:
        """Return the command that exports the bundle in `folder` again; the manifest does not hold every flag.

        The folder of a calibration is left to the user. Recipes and patterns of linears are left out.
        """
        flags = ["--target", self.target, "--precision", self.precision]
        if self.weights == "link":
            flags += ["--weights", "link"]
        for row in components_with(self.facts.attention):
            if row.optional and row.name not in self.components:
                flags += ["--without", row.name]
        if self.calibration is not None:
            flags += ["--calibration", "FOLDER"]
        return f"qwen-image export {self.flags} {command_line(folder, *flags)}"

    @property
    def cache_token_bytes(self) -> int:
        """Bytes of a prefix token's keys and values in all layers; 0 if attention is bidirectional."""
        step = self.components.get(self.facts.step)
        return 0 if step is None else step.contract.cache_bytes(1)

    @property
    def absent_for_references(self) -> tuple[str, ...]:
        """Names of the components that reference images need and the bundle does not have, optional ones first."""
        needed = [row for row in components_with(self.facts.attention) if row.needs_reference_images]
        needed.sort(key=lambda row: not row.optional)
        return tuple(row.name for row in needed if row.name not in self.components)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the names and hashes of all files but plans: equal for bundles that draw equal pictures."""
        listed = sorted((name, entry.sha256) for name, entry in self.files.items() if name not in self.plan_files)
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        """Bytes of all files. A file of the checkpoint that two networks link to counts once, as on the disk."""
        if self.weights == "link":
            return sum({file.sha256: file.bytes for file in self.files.values()}.values())
        return sum(file.bytes for file in self.files.values())

    @property
    def plan_files(self) -> frozenset[str]:
        """Names of the files that belong to plans."""
        return frozenset(name for plans in self.plans.values() for plan in plans for name in plan.listed)

    @property
    def weight_files(self) -> frozenset[str]:
        """Names of the files with weights: of the graphs, and the file of the token embedding table."""
        return frozenset((self.embeddings.file, *(name for item in self.components.values() for name in item.weights)))

    def to_json(self) -> dict[str, Any]:
        """Return the object that manifest.json holds."""
        document = with_digests(asdict(self))
        return {"format": FORMAT, "schema": SCHEMA, _FACTS_SHA256: facts_sha256(document), **document}


def facts_sha256(document: Mapping[str, Any]) -> str:
    """Return the SHA-256 of everything in a manifest's JSON that decides pictures: facts, contracts, hashes of files.

    Plans, their files and the result of `verify` are left out: they are added to a bundle later. The hash finds damage.
    It is no signature: whoever changes the facts can write a hash that fits.
    """
    plans = {
        plan.get(key) for plans in document.get("plans", {}).values() for plan in plans for key in ("file", "layers")
    }
    decides = {key: document[key] for key in _DECIDING}
    files = {name: entry["sha256"] for name, entry in document["files"].items() if name not in plans}
    text = json.dumps({**decides, "files": files}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def is_bundle(folder: Path) -> bool:
    """Return whether `folder` has a manifest of any schema version."""
    try:
        data = parse(read_regular(folder / MANIFEST, MAX_JSON_BYTES))
    except (OSError, SchemaError):
        return False
    return isinstance(data, dict) and data.get("format") == FORMAT


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write manifest.json atomically: to a temporary file that is renamed.

    Raises:
        OSError: the file cannot be written or renamed.
    """
    text = json.dumps(manifest.to_json(), indent=1, ensure_ascii=False) + "\n"
    with whole_file(folder / MANIFEST, temporary=folder / f".{MANIFEST}.partial", durable=True) as file:
        file.write(text.encode())


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of the bundle in `folder` and check its format. `runtime.bundle.files` checks the files.

    Raises:
        QwenImageError: there is no manifest, it cannot be read, is a link out of the bundle, or it is not JSON, not a
            bundle's manifest, of another schema version or not in the expected format; or its facts contradict each
            other, or are not the facts that it was written with.
    """
    path = folder / MANIFEST
    try:
        text = read_regular(path, MAX_JSON_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        raise QwenImageError(_no_bundle(folder)) from None
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    if leads_out(path, folder):
        raise QwenImageError(f"{path}: is a link out of the bundle, expected a file; get the bundle again")
    try:
        data = parse(text)
    except SchemaError as error:
        raise QwenImageError(f"{path}: is {error}; export the bundle again") from error
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise QwenImageError(f'{path}: is not the manifest of a bundle: no "format": "{FORMAT}" in it')
    if data.get("schema") == _ONE_PLAN:
        data = _with_plan_lists(data)
    if data.get("schema") == _ONE_PIECE:
        data = with_pieces(data)
    if data.get("schema") in (_NO_BOUND_WEIGHTS, _ONE_PIECE):
        data["schema"] = SCHEMA
    if data.get("schema") != SCHEMA:
        source = data["checkpoint"].get("path") if isinstance(data.get("checkpoint"), dict) else None
        place = source if isinstance(source, str) and 0 < len(source) <= _LONGEST_PATH else "its checkpoint"
        remedy = f"export the bundle with this version, from {place}"
        if isinstance(data.get("schema"), int) and data["schema"] > SCHEMA:
            remedy = "a newer version wrote it; update this one with: pip install -U qwen-image-engine"
        found = described(data.get("schema"))
        raise QwenImageError(f"{path}: schema version {found}, this version reads {SCHEMA}; {remedy}")
    try:
        return _manifest(data)
    except SchemaError as error:
        raise QwenImageError(f"{path}: not in the expected format: {error}; export the bundle again") from error


def _no_bundle(folder: Path) -> str:
    """Return what is in the place of a bundle, and how to get one."""
    if not folder.is_dir():
        return f"{folder}: does not exist; make it with: qwen-image export -m CHECKPOINT {command_line(folder)}"
    if (folder / "transformer" / "config.json").is_file():  # no bundle has one
        made = f"make a bundle of it with: qwen-image export -m {command_line(folder)} BUNDLE"
        return f"{folder}: is a checkpoint, expected a bundle; {made}"
    advice = "name a bundle, or make one with: qwen-image export -m CHECKPOINT BUNDLE"
    return f"{folder}: is no bundle: no {MANIFEST} in it; {advice}"


def record_verification(folder: Path, result: Mapping[str, Any]) -> None:
    """Record the result of `verify` in the manifest of the bundle in `folder`, atomically.

    Raises:
        QwenImageError: the folder is not a bundle, or its manifest cannot be read or written.
    """
    manifest = replace(read_manifest(folder), verify=result)
    try:
        write_manifest(folder, manifest)
    except OSError as error:
        raise QwenImageError(f"{folder / MANIFEST}: cannot be written ({error.strerror or error})") from error


def _manifest(document: Mapping[str, Any]) -> Manifest:
    data = {key: value for key, value in document.items() if key not in ("format", "schema", _FACTS_SHA256, LISTS)}
    lists = document.get(LISTS, {})
    _BOUND_LISTS(lists, LISTS)
    _MANIFEST(data, "")
    files = {name: FileEntry(**entry) for name, entry in data["files"].items()}
    components = {name: _component(name, entry, files) for name, entry in data["components"].items()}
    plans = {
        name: tuple(_plan(f"plans.{name}[{index}]", entry, files, lists) for index, entry in enumerate(entries))
        for name, entries in data.get("plans", {}).items()
    }
    embeddings, calibration = data["embeddings"], data.get("calibration")
    _check_listed("embeddings.file", embeddings["file"], files)
    dims, facts = Dims(**data["dims"]), ModelFacts.from_json(data["facts"])
    check_facts(facts, dims)
    contracts = {name: entry.contract for name, entry in components.items()}
    check_contracts(contracts, dims)
    check_plans(plans, contracts)
    check_table(embeddings, dims, files[embeddings["file"]].bytes)
    stated = document.get(_FACTS_SHA256)  # the previous release wrote none
    if stated is not None and stated != (found := facts_sha256(data)):
        raise SchemaError(f"its facts have the sha256 {found[:12]}…, expected {described(stated)}: a fact was changed")
    return Manifest(
        **{
            **data,
            "tool": Tool(**data["tool"]),
            "checkpoint": CheckpointEntry(**data["checkpoint"]),
            "dims": dims,
            "facts": facts,
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


def _plan(
    place: str,
    entry: Mapping[str, Any],
    files: Mapping[str, FileEntry],
    lists: Mapping[str, Sequence[Mapping[str, Any]]],
) -> PlanEntry:
    _check_listed(f"{place}.file", entry["file"], files)
    if entry.get("layers") is not None:
        _check_listed(f"{place}.layers", entry["layers"], files)
    bound = list_of(place, entry.get("bound"), lists)
    for piece in (piece for weight in bound for piece in weight.pieces):
        _check_listed(f"the file of {piece.name} in {LISTS}", piece.file, files)
    profiles = tuple(
        Profile(item["name"], {key: _extents(shapes) for key, shapes in item["shapes"].items()})
        for item in entry["profiles"]
    )
    return PlanEntry(
        **{
            **entry,
            "profiles": profiles,
            "compute_capabilities": tuple(entry["compute_capabilities"]),
            "scratch_bytes": tuple(entry.get("scratch_bytes", ())),
            "bound": bound,
        }
    )


def _with_plan_lists(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest of schema 6 in the form of schema 7. What is not as 6 had it stays, for the check to find."""
    plans = document.get("plans", {})
    if isinstance(plans, dict):
        plans = {name: [_with_builder(plan)] if isinstance(plan, dict) else plan for name, plan in plans.items()}
    return {**document, "schema": SCHEMA, "plans": plans}


def _with_builder(plan: Mapping[str, Any]) -> dict[str, Any]:
    renamed = {"tensorrt": "version", "compute_capability": "compute_capabilities"}
    found = {renamed.get(key, key): value for key, value in plan.items()}
    return {**found, "builder": BUILDERS[0], "compute_capabilities": [found.get("compute_capabilities")]}


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
        # A name may be harmless on one system and lead out of the bundle on another: "..\\weights", "C:weights".
        paths = (PurePosixPath(name), PureWindowsPath(name))
        if len(name) > _LONGEST_PATH or not is_name(name):
            raise SchemaError(f"{place} has the path {described(name)}, which no file can have")
        if any(path.anchor or ".." in path.parts or not path.parts for path in paths):
            raise SchemaError(f"{place} has the path {described(name)}, which leaves the bundle")
    named(fields_of(FileEntry))(value, place)


_PATH = leaf(
    f"a path of at most {_LONGEST_PATH} characters",
    lambda value: isinstance(value, str) and len(value) <= _LONGEST_PATH and is_name(value),
)
_CAPABILITY = leaf(
    'a compute capability, such as "8.9"',
    lambda value: isinstance(value, str) and re.fullmatch(r"[0-9]{1,2}\.[0-9]", value) is not None,
)
_EXTENTS = leaf("the least, best and largest shape, as lists of sizes above 0, in order", _are_extents)
_PROFILE = fields_of(Profile, shapes=named(_EXTENTS))
_AXIS = leaf("the name or the size of an axis", lambda value: isinstance(value, str) or is_whole(value))
_TENSORS = many(fields_of(TensorSpec, shape=many(_AXIS, least=0)), least=0)
_COMPONENT = fields_of(
    ComponentEntry,
    model=_PATH,
    weights=many(_PATH, least=0),
    quantised_layers=named(fields_of(QuantisedLayer)),
    contract=fields_of(Contract, inputs=_TENSORS, outputs=_TENSORS),
    fp8_attention=named(fields_of(Fp8Scales)),
    fused_attentions=optional(many(TEXT, least=0)),
)
_PLAN = fields_of(
    PlanEntry,
    file=_PATH,
    builder=leaf(f"{' or '.join(BUILDERS)}", lambda value: value in BUILDERS),
    compute_capabilities=many(_CAPABILITY),
    profiles=many(_PROFILE, least=0),
    layers=optional(_PATH),
    bound=optional(TEXT),
)
_BOUND_LISTS = named(many(fields_of(BoundWeight, pieces=many(fields_of(WeightPiece, file=_PATH)))))
_MANIFEST = fields_of(
    Manifest,
    tool=fields_of(Tool),
    checkpoint=fields_of(CheckpointEntry, path=_PATH, transformer_file=optional(_PATH)),
    dims=DIMS_SCHEMA,
    facts=FACTS_SCHEMA,
    embeddings=fields_of(EmbeddingsEntry, shape=leaf("two sizes", lambda value: is_list_of(value, is_count, 2))),
    components=named(_COMPONENT, tuple(CONTRACTS)),
    files=_check_files,
    origins=named(TEXT),
    loras=many(fields_of(LoraEntry, path=_PATH), least=0),
    calibration=optional(fields_of(CalibrationEntry, settings=OBJECT)),
    plans=named(many(_PLAN), tuple(CONTRACTS)),
    verify=optional(OBJECT),
)
