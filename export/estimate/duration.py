"""The duration of an export, from the checkpoint's sizes and a trial of a second or two on this machine."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from functools import cache

import torch

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.export.weights.file_hashes import hashing_threads
from qwen_image_engine.export.weights.weight_file import Entry, Stored, entry_bytes
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

# Tracing is Python: seconds of a graph to begin with and for each layer, fitted to exports of `shapes` (3 and 7 layers)
# and of the released sizes (36 and 32), where `_interpreter_seconds` were `_PACE`. The VAE has one depth.
_TRACING = {
    "text_encoder": (3.3, 0.68),
    "vision": (3.3, 0.6),
    "prefix": (2.9, 0.6),
    "prefix_image": (3.6, 1.4),
    "step": (2.8, 0.83),
    "joint": (2.8, 0.83),
    "vae_decoder_mid": (4.0, 0.0),
    "vae_decoder_up": (9.0, 0.0),
    "vae_encoder": (9.0, 0.0),
}
_PACE = 0.041
_START_S = 3.0  # imports, and the checkpoint's check
_DISK = 4.5e-9  # seconds a byte: what writing 17 GB took beyond the trial's pace; a trial that writes is not wanted
_TWO_THREADS = 1.7  # times as fast as one, measured; blocks of 1 MB gain little from more

_TRIAL_BYTES = 4 << 20
_HASHED_BYTES = 64 << 20


def export_seconds(
    checkpoint: Checkpoint, components: Sequence[str], entries: Sequence[Entry], *, linked: bool
) -> float:
    """Estimate the seconds that the export of `checkpoint` takes; read each kind of weight once on trial.

    Args:
        checkpoint: checkpoint to export.
        components: components of the bundle.
        entries: entries of all weight files that the export writes.
        linked: whether the checkpoint's own files are linked instead of written.

    Raises:
        QwenImageError: a weight cannot be read.
    """
    layers = {
        "text_encoder": checkpoint.text_encoder.num_hidden_layers,
        "vision": checkpoint.vision.depth,
        "transformer": checkpoint.transformer.num_layers,
        "vae": 0,
    }
    tracing = sum(_TRACING[name][0] + _TRACING[name][1] * layers[COMPONENTS[name].network] for name in components)
    working = _START_S + tracing * _interpreter_seconds() / _PACE + (0.0 if linked else _writing_seconds(entries))
    stored = sum(component.nbytes for component in checkpoint.components.values())
    hashing = stored * _hashing_seconds_per_byte() / hashing_threads()
    return max(working, hashing) if (os.cpu_count() or 1) > 1 else working + hashing


def _writing_seconds(entries: Sequence[Entry]) -> float:
    """Return the seconds of writing all entries, each kind at the measured throughput of one entry."""
    kinds: dict[tuple[object, ...], list[Entry]] = {}
    for entry in entries:
        kinds.setdefault(_kind(entry), []).append(entry)
    return sum((_pace(alike) + _DISK) * sum(map(entry_bytes, alike)) for alike in kinds.values())


def _kind(entry: Entry) -> tuple[object, ...]:
    return type(entry), entry.dtype, entry.source.dtype if isinstance(entry, Stored) else None


def _pace(entries: Sequence[Entry]) -> float:
    """Return the seconds a byte of the smallest entry that is large enough to measure; 0 if none is."""
    large = [entry for entry in entries if entry_bytes(entry) >= _TRIAL_BYTES]
    if not large:
        return 0.0
    entry = min(large, key=entry_bytes)

    def read() -> None:
        digest = hashlib.sha256()
        for block in entry.blocks():
            digest.update(block)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # where other processes take turns, threads that wait for one another tell nothing
    try:
        return _best_seconds(read) / entry_bytes(entry) / (_TWO_THREADS if threads > 1 else 1)
    finally:
        torch.set_num_threads(threads)


@cache
def _hashing_seconds_per_byte() -> float:
    """Return the seconds of hashing a byte, of this process's first trial: the machine stays the same."""
    data = memoryview(bytearray(_HASHED_BYTES))
    return _best_seconds(lambda: hashlib.sha256(data).digest()) / _HASHED_BYTES


@cache
def _interpreter_seconds() -> float:
    """Return the seconds that a fixed piece of Python takes on this machine, of this process's first trial."""

    def work() -> None:
        kept: dict[str, int] = {}
        for number in range(100_000):
            item = _Item(number)
            kept[str(number & 1023)] = item.values.get("number", 0) + len(kept)

    return _best_seconds(work)


class _Item:
    def __init__(self, number: int) -> None:
        self.values = {"number": number}


def _best_seconds(work: Callable[[], object]) -> float:
    """Return the least seconds of three runs, by clock or processor time.

    The first run warms up, and other processes take turns.
    """

    def once() -> float:
        began, used = time.perf_counter(), time.process_time()
        work()
        return min(time.perf_counter() - began, time.process_time() - used)

    return min(once() for _ in range(3))
