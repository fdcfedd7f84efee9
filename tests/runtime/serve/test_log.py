"""The log: JSON lines whatever the fields hold, and streams that cannot be written."""

import io
import json
import logging
from typing import Any

from qwen_image_engine.runtime.serve.log import Log, LogHandler


def test_a_line_is_one_document() -> None:
    stream = io.StringIO()
    log = Log(stream)
    log.write("request", path="/a\nb\u2028\ud800", status=200, client=None, other=object())
    (line,) = stream.getvalue().splitlines()
    found = json.loads(line)
    assert (found["event"], found["level"], found["path"]) == ("request", "info", "/a\nb\u2028\ud800")
    assert "client" not in found
    assert found["time"].endswith("+00:00")


def test_errors_have_their_traceback() -> None:
    stream = io.StringIO()
    try:
        raise ValueError("no\nsuch")
    except ValueError as error:
        Log(stream).failure("failed", error, id="req_1")
    found = json.loads(stream.getvalue())
    assert (found["error"], found["level"], found["id"]) == ("ValueError: no\nsuch", "error", "req_1")
    assert "test_errors_have_their_traceback" in found["traceback"]


def test_a_stream_that_is_closed_is_no_failure() -> None:
    stream = io.StringIO()
    log = Log(stream)
    stream.close()
    log.write("request")

    class Full(io.StringIO):
        def write(self, text: str) -> Any:
            raise OSError(28, "No space left on device")

    Log(Full()).write("request")


def test_records_of_libraries() -> None:
    stream = io.StringIO()
    logger = logging.Logger("uvicorn.error")
    logger.addHandler(LogHandler(Log(stream)))
    logger.warning("Invalid %s", "request")
    try:
        raise ValueError("fault")
    except ValueError:
        logger.exception("it failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["level"], first["message"]) == ("library", "warning", "Invalid request")
    assert (second["message"], second["error"]) == ("it failed", "ValueError: fault")
