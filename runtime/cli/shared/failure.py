"""The end of a command that failed: one line on standard error, and with `--json` one document on standard output."""

import json
import os
import sys
import traceback
from contextlib import suppress
from typing import TextIO

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError, is_memory, one_line
from qwen_image_engine.runtime.system.interruption import Interruption


def failed(error: Exception | KeyboardInterrupt, interruption: Interruption, wants_json: bool) -> int:
    """Print the end of a command that raised `error`, and return the exit code.

    An error that is none of the project's is a fault of the program. Its traceback is printed first, unless a signal,
    the lack of memory or the system is the cause.
    """
    interruption.finish()
    if (
        isinstance(error, KeyboardInterrupt) or interruption.number is not None
    ):  # compiled code raises errors of its own
        return _end(interruption.words, interruption.exit_code, wants_json)
    if isinstance(error, QwenImageError):
        return _end(str(error), 2 if isinstance(error, UsageError) else 1, wants_json)
    if is_memory(error):
        return _end("out of memory", 1, wants_json)
    if isinstance(error, OSError):  # a full disk, a folder without permission
        return _end(str(error), 1, wants_json)
    with suppress(OSError):
        write("".join(traceback.format_exception(error)), sys.stderr)
    return _end(f"a fault of qwen-image itself: {type(error).__name__}: {one_line(error)}", 1, wants_json)


def at_once(interruption: Interruption, wants_json: bool) -> None:
    """Print the end of a command that a second signal ends at once, past Python's streams and their locks."""
    line, document = _texts(interruption.words, interruption.exit_code)
    for text, descriptor in ((line, 2), (document if wants_json else "", 1)):
        with suppress(OSError):
            os.write(descriptor, text.encode())


def write(text: str, stream: TextIO | None) -> None:
    """Write a text and flush the stream; a process without a console has none.

    Raises:
        OSError: the text cannot be written.
    """
    if stream is None:
        return
    try:
        stream.write(text)
        stream.flush()
    except BrokenPipeError:
        with suppress(OSError):  # the interpreter flushes again at its end, which must not fail again
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise


def _end(message: str, code: int, wants_json: bool) -> int:
    line, document = _texts(message, code)
    with suppress(OSError):  # nobody reads it any more, or it is on a full disk
        write(line, sys.stderr)
    if wants_json:
        with suppress(OSError):
            write(document, sys.stdout)
    return code


def _texts(message: str, code: int) -> tuple[str, str]:
    """Return the line and the document of a failure."""
    line = " ".join(message.split())
    return f"qwen-image: error: {line}\n", json.dumps({"error": line, "exit_code": code}, indent=2) + "\n"
