"""Weights on the device that several engines read: one copy of each, as long as some engine holds it.

It has not run on a GPU yet.
"""

import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from io import FileIO
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

_Key = tuple[Path, int, int, str]
_State = tuple[int, int, int, int]
"""Device, inode, size and time of the last change of a file."""


class SharedWeights:
    """The weights of files that are on the device, by place and contents.

    `take` gives arrays of bytes. An array, and with it its place here, lives as long as somebody refers to it, so an
    engine holds its arrays and lets go of them when it is closed.

    What one call uploads is in one block of memory, since blocks are rounded up to pages (of 2 MiB, as a rule; weights
    of 26 MB in blocks of their own would waste 6%). A block is freed when nothing in it is held: prefix, loaded after
    step, keeps what step alone needs, a few per cent of a transformer.
    """

    def __init__(self, stream: CudaStream) -> None:
        """Hold nothing yet. `stream` is for the copies."""
        self._stream = stream
        self._held: WeakValueDictionary[_Key, DeviceArray] = WeakValueDictionary()
        self._checked: dict[_Key, _State] = {}

    def missing(self, parts: Iterable[FilePart]) -> list[FilePart]:
        """Return the parts that are not on the device."""
        return [part for part in parts if part.key not in self._held]

    def take(self, parts: Mapping[str, FilePart]) -> dict[str, DeviceArray]:
        """Return the bytes of each part on the device. Upload what is not there.

        Every file is opened and its size is checked before anything is uploaded. The SHA-256 of a part is checked when
        it is uploaded for the first time, and again if its file has changed since; see `upload_parts` for its cost.
        Nothing is returned, or kept for another call, before all parts are checked.

        Raises:
            OutOfDeviceMemory: the device has no room.
            QwenImageError: a file is missing, not regular, too short or has other contents. The text names the tensor.
        """
        found = {part.key: held for part in parts.values() if (held := self._held.get(part.key)) is not None}
        wanted = {part.key: part for part in parts.values() if part.key not in found}
        with ExitStack() as stack:
            files: dict[Path, FileIO] = {}
            for part in wanted.values():
                if part.path not in files:
                    files[part.path] = stack.enter_context(_open(part))
                size = os.fstat(files[part.path].fileno()).st_size
                if size < part.offset + part.nbytes:
                    raise part.fault(f"it holds {size} bytes, expected {part.offset + part.nbytes} at least")
            states = {part.key: _state(files[part.path]) for part in wanted.values()}
            unchecked = [part for key, part in wanted.items() if self._checked.get(key) != states[key]]
            fresh = self._room_for(wanted)
            upload_parts(self._stream, list(wanted.values()), list(fresh.values()), files, unchecked)
        self._held.update(fresh)  # only now: an error may keep arrays alive that were not checked
        self._checked.update(states)
        found |= fresh
        return {name: found[part.key] for name, part in parts.items()}

    def _room_for(self, parts: Mapping[_Key, FilePart]) -> dict[_Key, DeviceArray]:
        """Allocate a block with a place for each part."""
        block = CudaMemory(self._stream.context, room_bytes(parts.values()), "weights")
        places, offset = {}, 0
        for key, part in parts.items():
            places[key] = DeviceArray(block, (part.nbytes,), "uint8", offset)
            offset += _room(part.nbytes)
        return places


def room_bytes(parts: Iterable[FilePart]) -> int:
    """Return the bytes of device memory that parts take, each place and content once."""
    return sum(map(_room, {part.key: part.nbytes for part in parts}.values()))


def _room(nbytes: int) -> int:
    return -(-nbytes // _ALIGNMENT) * _ALIGNMENT


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
