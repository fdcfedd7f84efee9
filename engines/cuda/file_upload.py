"""Copies of parts of files to the device through page-locked memory. The parts are hashed while they pass.

Files are read, not mapped: no page of them stays in this process, and a file that is cut short meanwhile gives an error
instead of a signal. The only copy on the host is the piece that is on its way.

It has not run on a GPU yet.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import FileIO
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.device_array import DeviceArray
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.cuda.stream import CudaEvent, CudaStream, HostMemory

PIECE_BYTES = 8 << 20
"""Bytes of a piece: 0.3 ms on the way to the device, 6 ms in the hash."""

_LANES = 4
"""Parts whose pieces pass in turn. A part's hash is sequential, so that many threads hash."""


@dataclass(frozen=True)
class FilePart:
    """Bytes of a file that belong on the device.

    Attributes:
        path: path of the file.
        offset: offset of the first byte in the file.
        nbytes: number of bytes.
        sha256: SHA-256 of the bytes.
        name: name of the tensor, for errors.
        mend: advice for a file that is missing or has other contents, for errors.
    """

    path: Path
    offset: int
    nbytes: int
    sha256: str
    name: str
    mend: str

    @property
    def key(self) -> tuple[Path, int, int, str]:
        """Place and contents. Parts of the same key need one copy on the device."""
        return self.path, self.offset, self.nbytes, self.sha256

    def fault(self, found: str) -> QwenImageError:
        """Return the error for a file that does not hold the part; `found` is the finding."""
        return QwenImageError(f"{self.path}: {found}, and it should hold the weight {self.name}; {self.mend}")


@dataclass
class _Transfer:
    """A part on its way, with its hash up to the last piece that passed."""

    part: FilePart
    target: DeviceArray
    digest: "hashlib._Hash | None"
    hashing: Future[None] | None = None


@dataclass(frozen=True)
class _Piece:
    transfer: _Transfer
    start: int
    nbytes: int


class _Slot:
    """Page-locked memory for a piece. It is filled again once the device and the hash are done with it."""

    def __init__(self, stream: CudaStream, nbytes: int) -> None:
        self._stream, self._host, self._copied = stream, HostMemory(stream.context, nbytes), CudaEvent(stream.context)
        self._hashing: Future[None] | None = None
        self._used = False

    def pass_on(self, piece: _Piece, file: FileIO, pool: ThreadPoolExecutor) -> None:
        """Read a piece, and enqueue its copy and its hash."""
        if self._used:
            self._copied.wait()
        if self._hashing is not None:
            self._hashing.result()
        transfer, rows = piece.transfer, self._host.bytes[: piece.nbytes]
        _read(file, transfer.part, piece.start, rows)
        target = transfer.target
        self._stream.upload(target.memory, self._host, piece.nbytes, into=target.offset + piece.start)
        self._stream.record(self._copied)
        self._used = True
        if transfer.digest is not None:
            transfer.hashing = self._hashing = pool.submit(_hash, transfer.digest, rows, transfer.hashing)


def upload_parts(
    stream: CudaStream,
    parts: Sequence[FilePart],
    targets: Sequence[DeviceArray],
    files: Mapping[Path, FileIO],
    unchecked: Iterable[FilePart],
) -> None:
    """Copy parts of files to the device and wait until they are there; the bytes of `unchecked` parts are hashed.

    SHA-256 takes 0.8 s for each GB on one core that has instructions for it (measured: 1.3 GB/s). Four threads compute
    it beside the reading and the copying, so 14 GB cost 11 s of one core, or 3 s where four are free (not measured).

    Args:
        stream: stream for the copies.
        parts: parts to copy.
        targets: array of bytes on the device for each part.
        files: the parts' files by path, open and unbuffered.
        unchecked: parts whose SHA-256 is to be compared.

    Raises:
        QwenImageError: a file cannot be read or ends early, the SHA-256 of a part is another, or the driver returns an
            error. The arrays are then worth nothing.
    """
    hashed = {part.key for part in unchecked}
    transfers = [
        _Transfer(part, target, hashlib.sha256() if part.key in hashed else None)
        for part, target in zip(parts, targets, strict=True)
    ]
    most = min(PIECE_BYTES, max((part.nbytes for part in parts), default=0))
    count = min(2 * _LANES, sum(-(-part.nbytes // PIECE_BYTES) for part in parts))
    slots = deque(_Slot(stream, most) for _ in range(count))
    try:
        with ThreadPoolExecutor(_LANES) as pool:
            for piece in _pieces(transfers):
                slots[0].pass_on(piece, files[piece.transfer.part.path], pool)
                slots.rotate(-1)
    except BaseException:
        with suppress(QwenImageError):  # the device reads the slots
            stream.synchronise()
        raise
    stream.synchronise()
    for transfer in transfers:
        found = transfer.digest.hexdigest() if transfer.digest is not None else transfer.part.sha256
        if found != transfer.part.sha256:
            raise transfer.part.fault(f"bytes {transfer.part.offset} and on are others than their SHA-256 says")


def _pieces(transfers: Iterable[_Transfer]) -> Iterator[_Piece]:
    """Yield all pieces, those of up to `_LANES` parts in turn, each part's in order."""
    waiting = iter(transfers)
    lanes = deque(map(_pieces_of, islice(waiting, _LANES)))
    while lanes:
        piece = next(lanes[0], None)
        if piece is not None:
            yield piece
            lanes.rotate(-1)
            continue
        lanes.popleft()
        lanes.extend(map(_pieces_of, islice(waiting, 1)))


def _pieces_of(transfer: _Transfer) -> Iterator[_Piece]:
    for start in range(0, transfer.part.nbytes, PIECE_BYTES):
        yield _Piece(transfer, start, min(PIECE_BYTES, transfer.part.nbytes - start))


def _read(file: FileIO, part: FilePart, start: int, rows: NDArray[np.uint8]) -> None:
    """Fill `rows` with bytes of a part."""
    view, filled = rows.data, 0
    try:
        file.seek(part.offset + start)
        while filled < len(view):
            count = file.readinto(view[filled:])
            if not count:
                raise part.fault("it became shorter while it was read")
            filled += count
    except OSError as error:
        raise part.fault(f"it cannot be read ({error.strerror or error})") from error


def _hash(digest: "hashlib._Hash", rows: NDArray[np.uint8], before: Future[None] | None) -> None:
    """Add a piece to a part's hash, after the piece before it. Python's lock is free meanwhile."""
    if before is not None:
        before.result()
    digest.update(rows.data)
