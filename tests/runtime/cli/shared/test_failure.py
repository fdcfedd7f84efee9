"""The end of a command that failed: `--json` prints its one document whatever fails."""

import errno
import json
import sys

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.cli.main import carry_out, main
from qwen_image_engine.runtime.cli.shared.result import VerbResult


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (QwenImageError("no\nbundle"), 1, "no bundle"),
        (UsageError("no size"), 2, "no size"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError(), 1, "out of memory"),
        (RuntimeError("bad allocation"), 1, "out of memory"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 1, "[Errno 32] Broken pipe"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "[Errno 28] No space left on device"),
        (RecursionError("too deep"), 1, "a fault of qwen-image itself: RecursionError: too deep"),
        (RuntimeError("odd"), 1, "a fault of qwen-image itself: RuntimeError: odd"),
    ],
)
@pytest.mark.parametrize("wants_json", [False, True])
def test_every_error_has_one_line_and_one_document(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, words: str, wants_json: bool
) -> None:
    def work() -> VerbResult:
        raise error

    assert carry_out(work, wants_json, quiet=wants_json) == code
    out, err = capsys.readouterr()
    assert err.splitlines()[-1] == f"qwen-image: error: {words}"
    assert ("Traceback" in err) == ("fault" in words)
    if wants_json:
        assert json.loads(out) == {"error": words, "exit_code": code}
    else:
        assert out == ""


def test_the_document_of_a_result_that_is_no_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert carry_out(lambda: VerbResult({"loss": float("nan")}, []), True, quiet=True) == 1
    assert "ValueError" in json.loads(capsys.readouterr().out)["error"]


def test_the_document_where_nobody_reads_the_errors(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Left:
        encoding = "utf-8"

        def write(self, text: str) -> int:
            raise BrokenPipeError

        def flush(self) -> None:
            raise BrokenPipeError

        def fileno(self) -> int:
            raise OSError

    monkeypatch.setattr(sys, "stderr", Left())
    assert main(["paint", "--json"]) == 2
    assert "invalid choice: 'paint'" in json.loads(capsys.readouterr().out)["error"]
