"""The log: one JSON object a line on standard error, with the id of the request it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any, TextIO


class Log:
    """A log of JSON lines. Threads may share it.

    Args:
        stream: where the lines go; None for standard error.
        prompts: whether prompts are written.
    """

    def __init__(self, stream: TextIO | None = None, prompts: bool = False) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._prompts = prompts

    def write(self, event: str, level: str = "info", **fields: Any) -> None:
        """Write a line. Fields that are None are left out. A log that cannot be written is no reason to fail."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "level": level, "event": event, **fields}
        text = json.dumps({key: value for key, value in line.items() if value is not None}, default=str)
        try:
            self._stream.write(f"{text}\n")
            self._stream.flush()
        except (OSError, ValueError):
            return

    def failure(self, event: str, error: BaseException, **fields: Any) -> None:
        """Write a line with an error and its traceback."""
        trace = "".join(traceback.format_exception(error))
        self.write(event, "error", error=f"{type(error).__name__}: {error}", traceback=trace, **fields)

    def texts(self, **fields: str | None) -> dict[str, Any]:
        """Return the fields if prompts are written, and none otherwise."""
        return dict(fields) if self._prompts else {}


class LogHandler(logging.Handler):
    """A handler that writes the records of a library's loggers to a `Log`."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        fields = {"logger": record.name, "message": record.getMessage()}
        if record.exc_info and record.exc_info[1] is not None:
            self._log.failure("library", record.exc_info[1], **fields)
        else:
            self._log.write("library", record.levelname.lower(), **fields)
