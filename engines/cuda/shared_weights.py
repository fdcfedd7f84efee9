"""Weights on the device that several engines read: one copy of each, as long as some engine holds it.

It has not run on a GPU yet.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from io import FileIO
from itertools import accumulate
from pathlib import Path
from weakref import WeakValueDictionary

from qwen_image_engine.engines.core.device_array import DeviceArray
from qwen_image_engine.engines.core.files import open_regular
from qwen_image_engine.engines.cuda.file_upload import FilePart, upload_parts
from qwen_image_engine.engines.cuda.memory import CudaMemory
from qwen_image_engine.engines.cuda.stream import CudaStream

_ALIGNMENT = 512
"""Places of weights in a block begin at multiples of this [bytes]. A block begins at one of 256 at least (CUDA C++
Programming Guide, "Device Memory Accesses"), so weights lie no worse than in blocks of their own."""

Parts = tuple[FilePart, ...]
"""Parts of files whose bytes lie one behind the other on the device: a weight, or several that are one input."""

_PartKey = tuple[Path, int, int, str]
_Key = tuple[_PartKey, ...]
_State = tuple[int, int, int, int]
"""Device, inode, size and time of the last change of a file."""


class SharedWeights:
    """The weights of files that are on the device, by place and contents.

    `take` gives arrays of bytes. An array, and with it its place here, lives as long as somebody refers to it, so an
    engine holds its arrays and lets go of them when it is closed. A weight may have several parts, for engines that
    read them as one input.

    What one call uploads is in one block of memory, since blocks are rounded up to pages (of 2 MiB, as a rule; weights
    of 26 MB in blocks of their own would waste 6%). A block is freed when nothing in it is held: prefix, loaded after
    step, keeps what step alone needs, a few per cent of a transformer.
    """

    def __init__(self, stream: CudaStream) -> None:
        """Hold nothing yet. `stream` is for the copies."""
        self._stream = stream
        self._held: WeakValueDictionary[_Key, DeviceArray] = WeakValueDictionary()
        self._checked: dict[_PartKey, _State] = {}

    def missing(self, weights: Iterable[Parts]) -> list[Parts]:
        """Return the weights that are not on the device."""
        return [parts for parts in weights if self._found(_key(parts)) is None]

    def take(self, weights: Mapping[str, Parts]) -> dict[str, DeviceArray]:
        """Return the bytes of each weight on the device, its parts one behind the other. Upload what is not there.

        A weight that is there as one of the parts of another is not uploaded, but one whose parts are there in places
        of their own is: of a transformer the keys' projection of one block, if prefix is loaded before step.

        Every file is opened and its size is checked before anything is uploaded. The SHA-256 of a part is checked when
        it is uploaded for the first time, and again if its file has changed since; see `upload_parts` for its cost.
        Nothing is returned, or kept for another call, before all parts are checked.

        Raises:
            OutOfDeviceMemory: the device has no room.
            QwenImageError: a file is missing, not regular, too short or has other contents. The text names the tensor.
        """
        keys = {name: _key(parts) for name, parts in weights.items()}
        found = {key: held for key in keys.values() if (held := self._found(key)) is not None}
        wanted = {keys[name]: parts for name, parts in weights.items() if keys[name] not in found}
        parts = [part for of in wanted.values() for part in of]
        with ExitStack() as stack:
            files: dict[Path, FileIO] = {}
            for part in parts:
                if part.path not in files:
                    files[part.path] = stack.enter_context(_open(part))
                size = os.fstat(files[part.path].fileno()).st_size
                if size < part.offset + part.nbytes:
                    raise part.fault(f"it holds {size} bytes, expected {part.offset + part.nbytes} at least")
            states = {part.key: _state(files[part.path]) for part in parts}
            unchecked = [part for part in parts if self._checked.get(part.key) != states[part.key]]
            fresh = self._room_for(wanted)
            targets = [target for key, held in fresh.items() for target in _places(key, held)]
            upload_parts(self._stream, parts, targets, files, unchecked)
        found |= fresh
        self._held.update(found)  # only now: an error may keep arrays alive that were not checked
        self._checked.update(states)
        return {name: found[key] for name, key in keys.items()}

    def _found(self, key: _Key) -> DeviceArray | None:
        """Return a weight on the device: in a place of its own, or one of the parts of another; None without either."""
        held = self._held.get(key)
        if held is not None or len(key) > 1:
            return held
        for other, joint in self._held.items():
            for part, place in zip(other, _places(other, joint), strict=True):
                if part == key[0] and place.offset % _ALIGNMENT == 0:
                    return place
        return None

    def _room_for(self, weights: Mapping[_Key, Parts]) -> dict[_Key, DeviceArray]:
        """Allocate a block with a place for each weight."""
        block = CudaMemory(self._stream.context, room_bytes(weights.values()), "weights")
        places, offset = {}, 0
        for key in weights:
            places[key] = DeviceArray(block, (_nbytes(key),), "uint8", offset)
            offset += _room(key)
        return places


def room_bytes(weights: Iterable[Parts]) -> int:
    """Return the bytes of device memory that weights take, each place and content once."""
    return sum(map(_room, set(map(_key, weights))))


def _key(parts: Parts) -> _Key:
    return tuple(part.key for part in parts)


def _nbytes(key: _Key) -> int:
    return sum(nbytes for _, _, nbytes, _ in key)


def _room(key: _Key) -> int:
    return -(-_nbytes(key) // _ALIGNMENT) * _ALIGNMENT


def _places(key: _Key, held: DeviceArray) -> list[DeviceArray]:
    """Return the array of each part of a weight, one behind the other."""
    ends = [*accumulate((nbytes for _, _, nbytes, _ in key), initial=held.offset)]
    return [
        DeviceArray(held.memory, (nbytes,), "uint8", start)
        for start, (_, _, nbytes, _) in zip(ends[:-1], key, strict=True)
    ]


def _open(part: FilePart) -> FileIO:
    try:
        file = open_regular(part.path, buffering=0)
    except OSError as error:
        raise part.fault(f"it cannot be read ({error.strerror or error})") from error
    assert isinstance(file, FileIO)
    return file


def _state(file: FileIO) -> _State:
    status = os.fstat(file.fileno())
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
