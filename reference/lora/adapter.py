"""An opened adapter: its updates of a component's weights, its writer, and the origin of its scale.

Opening reads only headers, settings and alphas.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from qwen_image_engine.engines.core.dtypes import STORED, STORED_FACTORS
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.reference.lora.file import PEFT_WEIGHTS, LoraFile
from qwen_image_engine.reference.lora.keys import (
    NO_PREFIX,
    PEFT,
    WHOLE,
    Part,
    is_text_encoder,
    linear_names,
    other_kind,
    split_key,
)
from qwen_image_engine.reference.lora.scaling import CONFIG, METADATA, AdapterConfig
from qwen_image_engine.reference.storage.merged_tensor import LowRank
from qwen_image_engine.reference.storage.single_file import halves
from qwen_image_engine.reference.storage.stored_network import StoredNetwork, counted
from qwen_image_engine.reference.storage.tensor_file import TensorInfo, read_header
from qwen_image_engine.runtime.system.tensor_header import read_metadata

Parts = dict[Part, TensorInfo]

_INTEGERS = ("I64", "I32")
_FACTOR_DTYPES = ", ".join(STORED_FACTORS)


@dataclass(frozen=True)
class Adapter:
    """An adapter whose keys and shapes fit a component.

    Attributes:
        file: path and scale, as they were given.
        files: files that decide the updates: the weights, and PEFT's settings if they were read from a file.
        writers: writers of the keys' spelling, one of the values in `keys`.
        updates: update of every weight that the adapter changes, by the name of the weight. The factor of an update is
            the product of the given scale and the adapter's own.
        ranks: ranks of the linears, without repetition, rising.
        factors: factors of the linears that the adapter itself asks for, alpha / rank, without repetition, rising.
        scale_from: place where the adapter states its scale, in words that follow "stated".
        unscaled: number of linears whose scale is stated nowhere. Their factor is 1.
        text_encoder_keys: number of keys of text encoders, which are left out.
        kohya_alpha: alpha in the metadata of a file of kohya's trainers; None if there is none.
    """

    file: LoraFile
    files: tuple[Path, ...]
    writers: tuple[str, ...]
    updates: Mapping[str, LowRank]
    ranks: tuple[int, ...]
    factors: tuple[float, ...]
    scale_from: str
    unscaled: int
    text_encoder_keys: int
    kohya_alpha: str | None

    @property
    def notes(self) -> tuple[str, ...]:
        """Sentences on what a reader of the file could take for granted and is not so."""
        notes = []
        if self.unscaled:
            found = "no alpha" if len(self.factors) == 1 else f"no alpha for {self.unscaled} of its linears"
            kohya = f", and kohya's metadata has {self.kohya_alpha}" if self.kohya_alpha else ""
            notes.append(
                f"{self.file.path}: states {found}{kohya}: merged at 1.0 times the given scale, as diffusers, ComfyUI "
                "and kohya's loader do; give another scale as PATH:SCALE if its author names one"
            )
        if self.text_encoder_keys:
            notes.append(
                f"{self.file.path}: {self.text_encoder_keys} of its keys are of a text encoder and are left out; the "
                "transformer's are merged"
            )
        return tuple(notes)


@dataclass
class _Entries:
    """The entries of a file, sorted. Every linear has "down" and "up"."""

    linears: dict[str, Parts] = field(default_factory=dict)
    writers: set[str] = field(default_factory=set)
    text_encoder: list[str] = field(default_factory=list)


def open_adapter(component: StoredNetwork, file: LoraFile) -> Adapter:
    """Open an adapter of a component.

    Raises:
        QwenImageError: the file is missing, damaged, or no adapter; it is of a kind other than LoRA; a key has no known
            form, belongs to no linear of the component, lacks its counterpart, or occurs twice; a shape, dtype or alpha
            does not fit; or the scale is in a file that is not there.
    """
    path = file.weights()
    entries, metadata = _sorted_entries(component, path), read_metadata(path)
    config = _config(path, metadata, entries)
    updates: dict[str, LowRank] = {}
    ranks, factors, unscaled = set(), set(), 0
    for linear, parts in entries.linears.items():
        down, up = parts["down"], parts["up"]
        targets = _targets(component, path, linear, down, up)
        rank = down.shape[0]
        if "alpha" in parts:
            factor = _number(path, parts["alpha"]) / rank
        else:
            factor = 1.0 if config is None else config.factor(linear, rank)
            unscaled += config is None
        for weight, rows in targets:
            if weight in updates:
                raise QwenImageError(f"{path}: keys {updates[weight].up.name!r} and {up.name!r} are of one weight")
            updates[weight] = LowRank(down, rows, file.scale * factor)
        ranks.add(rank)
        factors.add(factor)
    beside = path.parent / CONFIG
    from_file = config is not None and config.where == str(beside)
    return Adapter(
        file=file,
        files=(path, beside) if from_file else (path,),
        writers=tuple(sorted(entries.writers)),
        updates=updates,
        ranks=tuple(sorted(ranks)),
        factors=tuple(sorted(factors)),
        scale_from=_scale_from(config, from_file, unscaled, len(entries.linears)),
        unscaled=unscaled,
        text_encoder_keys=len(entries.text_encoder),
        kohya_alpha=metadata.get("ss_network_alpha"),
    )


def _sorted_entries(component: StoredNetwork, path: Path) -> _Entries:
    names = linear_names(name for name, tensor in component.tensors.items() if len(tensor.shape) == 2)
    found = _Entries()
    unknown, unmatched, repeated = [], [], []
    for key, entry in read_header(path).items():
        if is_text_encoder(key):
            found.text_encoder.append(key)
            continue
        split = split_key(key)
        if split is None:
            unknown.append(key)
        elif split.name not in names:
            unmatched.append(key)
        elif split.part in (parts := found.linears.setdefault(names[split.name], {})):
            repeated.append(key)
        else:
            parts[split.part] = entry
            found.writers.add(split.writer)
    _refuse_other_kinds(component, path, unknown, len(found.linears))
    alone = [
        entry.name for parts in found.linears.values() if not {"down", "up"} <= set(parts) for entry in parts.values()
    ]
    faults = [
        counted(what, keys)
        for what, keys in (
            ("of no form that is known", unknown),
            ("of no linear of the transformer", unmatched),
            ("without a counterpart", alone),
            ("that are there in another spelling", repeated),
        )
        if keys
    ]
    if faults:
        raise QwenImageError(
            f"{path}: its keys are not those of low-rank updates of {component.layout.class_name}: "
            f"{'; '.join(faults)}; {len(found.linears)} linears are matched"
        )
    if not found.linears:
        state = (
            f"all {len(found.text_encoder)} keys are of a text encoder" if found.text_encoder else "holds no tensors"
        )
        raise QwenImageError(f"{path}: {state}, expected low-rank updates of the transformer")
    return found


def _refuse_other_kinds(component: StoredNetwork, path: Path, keys: Sequence[str], linears: int) -> None:
    kinds: dict[str, list[str]] = {}
    for key in keys:
        if (kind := other_kind(key, component.tensors)) is not None:
            kinds.setdefault(kind, []).append(key)
    if kinds.keys() == {WHOLE} and not linears:
        raise QwenImageError(
            f"{path}: holds {counted('tensors of the transformer itself', kinds[WHOLE])}, expected low-rank updates; "
            "give a transformer as --transformer FILE"
        )
    if kinds:
        raise QwenImageError(
            f"{path}: its keys are not those of a plain LoRA, the only kind that can be merged here: "
            f"{'; '.join(counted(f'of {kind}', names) for kind, names in kinds.items())}; merge it with the tool it "
            "was made for, and give the merged transformer as --transformer FILE"
        )


def _config(path: Path, metadata: Mapping[str, str], entries: _Entries) -> AdapterConfig | None:
    """Return PEFT's settings of an adapter. None if its writer's library reads no settings.

    PEFT itself loads no file without its settings, so that a scale cannot be assumed.
    """
    beside = path.parent / CONFIG
    alphas = [parts["alpha"].name for parts in entries.linears.values() if "alpha" in parts]
    of_peft = PEFT in entries.writers or path.name == PEFT_WEIGHTS
    config = AdapterConfig.from_metadata(path, metadata)
    if config is None and beside.is_file() and (of_peft or (entries.writers == {NO_PREFIX} and not alphas)):
        config = AdapterConfig.from_file(beside)
    if config is not None and alphas:
        place = CONFIG if config.where == str(beside) else METADATA
        raise QwenImageError(f"{path}: alpha is in {alphas[0]!r} and in {place}, expected one of them")
    if config is None and PEFT in entries.writers and len(alphas) < len(entries.linears):
        raise QwenImageError(
            f"{path}: its keys are those of PEFT's save_pretrained, which writes the scale to {CONFIG}, and that file "
            "is not beside it; put it there"
        )
    return config


def _scale_from(config: AdapterConfig | None, from_file: bool, unscaled: int, linears: int) -> str:
    if config is not None:
        return f"in {CONFIG} beside it" if from_file else f"in {METADATA} of its metadata"
    if unscaled == linears:
        return "nowhere: alpha is taken as the rank"
    return "by its alphas" + (f", for {unscaled} of {linears} linears nowhere" if unscaled else "")


def _targets(
    component: StoredNetwork, path: Path, linear: str, down: TensorInfo, up: TensorInfo
) -> Iterator[tuple[str, TensorInfo]]:
    """Yield the weights of a linear, each with its rows of `up`. Two stacked linears have two weights."""
    weights = [f"{name}.weight" for name in halves(linear) or (linear,)]
    shapes = [component.tensors[weight].shape for weight in weights]
    rows, columns, rank = sum(shape[0] for shape in shapes), shapes[0][1], down.shape[0] if down.shape else 0
    for entry, expected in ((down, (rank, columns)), (up, (rows, rank))):
        if entry.shape != expected or rank == 0:
            raise QwenImageError(
                f"{path}: tensor {entry.name!r} is {entry.shape}, expected "
                f"({'rank' if entry is down else rows}, {columns if entry is down else rank or 'rank'})"
            )
        if entry.dtype not in STORED_FACTORS:
            raise QwenImageError(
                f"{path}: tensor {entry.name!r} has dtype {entry.dtype}, expected one of {_FACTOR_DTYPES}"
            )
    first = 0
    for weight, (count, _) in zip(weights, shapes, strict=True):
        yield weight, up if count == rows else up.rows(up.name, first, count)
        first += count


def _number(path: Path, entry: TensorInfo) -> float:
    """Read the value of a tensor with one element."""
    if entry.elements != 1 or entry.dtype not in (*STORED_FACTORS, *_INTEGERS):
        raise QwenImageError(f"{path}: tensor {entry.name!r} is {entry.dtype} {entry.shape}, expected one number")
    if entry.dtype.startswith("F8"):
        from qwen_image_engine.reference.storage.tensor_blocks import read_tensor  # numpy has no such dtypes

        number = read_tensor(entry).float().item()
    else:
        try:
            with open_regular(entry.file) as file:
                file.seek(entry.offset)
                value = np.frombuffer(file.read(entry.nbytes), STORED[entry.dtype].numpy)
        except OSError as error:
            raise QwenImageError(f"{path}: cannot be read ({error.strerror or error})") from error
        number = float((value.astype("<u4") << 16).view("<f4")[0] if entry.dtype == "BF16" else value[0])
    if not math.isfinite(number):
        raise QwenImageError(f"{path}: tensor {entry.name!r} is {number}, expected a finite number")
    return number
