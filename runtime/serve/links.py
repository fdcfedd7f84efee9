"""The temporary files behind `response_format: url`, bounded in number, bytes and age."""

from __future__ import annotations

import errno
import secrets
import shutil
import tempfile
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.files import whole_file
from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.limits import Limits

_TOKEN_BYTES = 24


@dataclass(frozen=True)
class _Link:
    path: Path
    bytes: int
    until: float


class Links:
    """Files of pictures by token. Whoever knows a token may read its file, until the file is removed.

    The oldest files are removed first. `close` removes all. Threads may share an object.
    """

    def __init__(self, limits: Limits, now: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._now = now
        self._lock = threading.Lock()
        self._links: OrderedDict[str, _Link] = OrderedDict()
        self._folder: Path | None = None

    def add(self, data: bytes, suffix: str) -> str:
        """Write a file and return its token.

        Raises:
            ApiError: the file is larger than all files together may be, or the disk has no room for it.
        """
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        with self._lock:
            self._shrink(len(data))
            if len(data) > self._limits.link_bytes:
                raise ApiError(
                    507, f"the picture takes {len(data)} bytes, more than this server keeps; ask for b64_json"
                )
            try:
                if self._folder is None:
                    self._folder = Path(tempfile.mkdtemp(prefix="qwen-image-"))
                path = self._folder / f"{token}.{suffix}"
                with whole_file(path) as file:
                    file.write(data)
            except OSError as error:
                full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
                fault = "its disk is full" if full else "its temporary folder cannot be written"
                text = f"this server cannot keep the picture, because {fault}; ask for response_format b64_json"
                raise ApiError(507, text, "response_format", "storage_full") from error
            self._links[token] = _Link(path, len(data), self._now() + self._limits.link_s)
        return token

    def read(self, token: str) -> tuple[bytes, str] | None:
        """Return the bytes and the suffix of a file; None if there is none of this token, or not any more."""
        with self._lock:
            self._shrink(0, room=0)
            link = self._links.get(token)
            if link is None:
                return None
            try:
                return link.path.read_bytes(), link.path.suffix.removeprefix(".")
            except OSError:  # somebody has emptied the folder for temporary files
                return None

    def close(self) -> None:
        """Remove all files."""
        with self._lock:
            self._links.clear()
            if self._folder is not None:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._folder = None

    def _shrink(self, new_bytes: int, room: int = 1) -> None:
        """Remove files that are too old, and the oldest until `room` new ones of `new_bytes` fit."""
        now = self._now()
        total = sum(link.bytes for link in self._links.values()) + new_bytes
        for token, link in list(self._links.items()):
            fits = total <= self._limits.link_bytes and len(self._links) + room <= self._limits.links
            if fits and link.until > now:
                break
            total -= link.bytes
            with suppress(OSError):
                link.path.unlink()
            del self._links[token]
