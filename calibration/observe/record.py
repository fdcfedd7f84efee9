"""A calibration: the folder with `calibration.safetensors` and, written last, `calibration.json`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from qwen_image_engine.calibration.observe.activations import observed_components, observed_tensors
from qwen_image_engine.calibration.observe.partial import PARTIAL
from qwen_image_engine.calibration.observe.settings import CheckpointIdentity, Settings
from qwen_image_engine.calibration.observe.statistics import PERCENTILES, InputStatistics
from qwen_image_engine.calibration.observe.tensor_file import pack, read, write_whole
from qwen_image_engine.engines.core.components import EVERY_STEP
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import read_regular, regular_size
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.system.files import file_sha256
from qwen_image_engine.runtime.system.json_schema import MAX_JSON_BYTES, TEXT, WHOLE, SchemaError, parse
from qwen_image_engine.runtime.system.json_schema import record as object_of
from qwen_image_engine.runtime.system.text import command_line

RECORD = "calibration.json"
TENSORS = "calibration.safetensors"

Statistics = Mapping[str, Mapping[str, InputStatistics]]
_FIELDS = tuple(field.name for field in fields(InputStatistics))
_TENSORS = object_of({"tensors": object_of({"bytes": WHOLE, "sha256": TEXT})})


@dataclass(frozen=True, eq=False)
class Calibration:
    """The activation statistics of a checkpoint.

    Attributes:
        components: statistics by component (`observed_components`) and activation (`observed_tensors`).
        settings: settings of the calibration.
        sha256: SHA-256 of `calibration.safetensors`.
    """

    components: Statistics
    settings: Settings
    sha256: str

    @classmethod
    def open(cls, folder: str | Path, checkpoint: Checkpoint) -> Calibration:
        """Open the calibration in `folder`, and check by hashes that it was made from `checkpoint`.

        Raises:
            QwenImageError: there is no calibration in `folder`; it is unfinished, damaged, or of another checkpoint or
                schema version; it lacks an activation; or a range is not finite, negative or zero.
        """
        folder = Path(folder)
        record = read_record(folder)
        _check_checkpoint(folder, record.settings.checkpoint, checkpoint)
        return load(folder, record, checkpoint)


@dataclass(frozen=True)
class Record:
    """The content of `calibration.json`: the settings, and the size and SHA-256 of the file of tensors."""

    settings: Settings
    bytes: int
    sha256: str


def read_record(folder: Path) -> Record:
    """Read `calibration.json`.

    Raises:
        QwenImageError: `calibration.json` is missing, damaged, or of another schema version.
    """
    path = folder / RECORD
    try:
        data = parse(read_regular(path, MAX_JSON_BYTES))
        settings = Settings.from_json(data)
        _TENSORS(data, "")
        return Record(settings, data["tensors"]["bytes"], data["tensors"]["sha256"])
    except FileNotFoundError:
        raise QwenImageError(_missing(folder)) from None
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be read ({error.strerror or error})") from error
    except SchemaError as error:
        raise QwenImageError(f"{path}: is not the record of a calibration ({error}); {_again(folder)}") from error


def load(folder: Path, record: Record, checkpoint: Checkpoint) -> Calibration:
    """Read and check the statistics that `record` describes.

    Raises:
        QwenImageError: the statistics are damaged, or do not match the linears of `checkpoint`; see
            `Calibration.open`.
    """
    path = folder / TENSORS
    try:
        size = regular_size(path)
    except OSError as error:
        remedy = f"; {_again(folder)}" if isinstance(error, FileNotFoundError) else ""
        raise QwenImageError(f"{path}: cannot be read ({error.strerror or error}){remedy}") from error
    if size != record.bytes:
        state = "truncated: it holds" if size < record.bytes else "it holds"
        raise QwenImageError(f"{path}: {state} {size} bytes, expected {record.bytes}; {_again(folder)}")
    if file_sha256(path) != record.sha256:
        raise QwenImageError(f"{path}: other contents than the sha256 in {RECORD} says; {_again(folder)}")
    stored, _ = read(path)
    found = {
        component: {name: _statistics(path, component, name, values) for name, values in activations.items()}
        for component, activations in stored.items()
    }
    check_statistics(str(path), found, checkpoint, record.settings)
    # The file is sorted by its own rule; here they stand as they run.
    components = {
        component: {name: found[component][name] for name in observed_tensors(checkpoint, component)}
        for component in observed_components(checkpoint, references=record.settings.images > 0)
    }
    return Calibration(components, record.settings, record.sha256)


def write(folder: Path, components: Statistics, settings: Settings) -> Calibration:
    """Write both files into `folder`, each completely or not at all, and the record last.

    Raises:
        QwenImageError: a file cannot be written.
    """
    values = {
        component: {
            name: {field: getattr(statistics, field) for field in _FIELDS} for name, statistics in activations.items()
        }
        for component, activations in components.items()
    }
    data = pack(values, {"format": "pt"})
    sha256 = hashlib.sha256(data).hexdigest()
    write_whole(folder / TENSORS, data)
    record = {**settings.to_json(), "tensors": {"file": TENSORS, "bytes": len(data), "sha256": sha256}}
    write_whole(folder / RECORD, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    return Calibration(components, settings, sha256)


def check_statistics(where: str, components: Statistics, checkpoint: Checkpoint, settings: Settings) -> None:
    """Check that every activation was observed and that the statistics are valid.

    A channel may be zero everywhere. An activation that is zero in all channels has no scale.

    Raises:
        QwenImageError: an activation is missing, its statistics have another dtype or shape than expected, a value is
            not finite, a range is negative, or all of the activation is zero. The text names the first fault.
    """
    for component in observed_components(checkpoint, references=settings.images > 0):
        found, expected = components.get(component, {}), observed_tensors(checkpoint, component)
        missing = [name for name in expected if name not in found]
        if missing:
            raise QwenImageError(
                f"{where}: {component} lacks {len(missing)} of {len(expected)} activations, the first {missing[0]}; "
                f"{_anew(checkpoint)}"
            )
        for name, tensor in expected.items():
            shapes = {
                "channel_absmax": (tensor.channels,),
                "channel_mean_square": (tensor.channels,),
                "percentiles": (len(PERCENTILES),),
                "absmax_by_step": (settings.steps if component in EVERY_STEP else 1,),
                "gram": (tensor.channels // tensor.block if tensor.block else 0, tensor.block, tensor.block),
            }
            fault = _fault(found[name], shapes)
            if fault:
                raise QwenImageError(f"{where}: {component}, {name}: {fault}; {_anew(checkpoint)}")


def _check_checkpoint(folder: Path, found: CheckpointIdentity, checkpoint: Checkpoint) -> None:
    config_sha256 = checkpoint.config_sha256()
    expected = f"{checkpoint.name} (config {config_sha256[:12]})"
    same = found.config_sha256 == config_sha256
    if same:  # weights take a second a gigabyte to hash: only where they decide
        asked = CheckpointIdentity(checkpoint.name, config_sha256, checkpoint.weights_sha256())
        same, expected = found.is_same(asked), str(asked)
    if not same:
        raise QwenImageError(
            f"{folder}: was made from the checkpoint {found}, expected {expected}; {_anew(checkpoint)}"
        )


def _fault(statistics: InputStatistics, shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Return a description of the first fault of one activation's statistics, or None if there is none."""
    for field, shape in shapes.items():
        values = getattr(statistics, field)
        if values.dtype != torch.float32 or tuple(values.shape) != shape:
            return f"{field} is {values.dtype} {tuple(values.shape)}, expected torch.float32 {shape}"
        if not bool(values.isfinite().all()):
            wrong = values.numel() - int(values.isfinite().sum())
            return f"{wrong} of {values.numel()} values of {field} are not finite"
        if field != "gram" and float(values.min()) < 0:
            return f"{field} holds {float(values.min()):g}, expected nothing below 0"
    if not float(statistics.channel_absmax.max()) > 0:
        return "its range is zero: every value that was seen is 0"
    return None


def _statistics(path: Path, component: str, name: str, values: Mapping[str, Any]) -> InputStatistics:
    absent = [field for field in _FIELDS if field not in values]
    if absent:
        raise QwenImageError(f"{path}: {component}, {name}: {absent[0]} is missing; {_again(path.parent)}")
    return InputStatistics(**{field: values[field] for field in _FIELDS})


def calibrate_command(flags: str, folder: str | Path) -> str:
    """Return the command that makes a calibration in `folder`, for an error's text; `flags` name the checkpoint."""
    return f"qwen-image calibrate {flags} {command_line(folder)} --prompts FILE [--images FOLDER]"


def _missing(folder: Path) -> str:
    if not folder.is_dir():
        return f"{folder}: does not exist; make it with: {calibrate_command('-m CHECKPOINT', folder)}"
    if (folder / PARTIAL).is_file():
        return f"{folder}: holds an unfinished calibration; finish it with the qwen-image calibrate that began it"
    return (
        f"{folder}: is no calibration: no {RECORD} in it; "
        f"make one with: {calibrate_command('-m CHECKPOINT', 'NEW_FOLDER')}"
    )


def _anew(checkpoint: Checkpoint) -> str:
    return f"calibrate again with: {calibrate_command(checkpoint.flags, 'NEW_FOLDER')}"


def _again(folder: Path) -> str:
    return f"remove {folder} and make it again with: {calibrate_command('-m CHECKPOINT', folder)}"
