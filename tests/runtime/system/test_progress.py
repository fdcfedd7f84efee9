"""The progress bar: on a terminal only, and gone when it is done."""

import io

import pytest

from qwen_image_engine.runtime.system.progress import ProgressBar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_nothing_is_written_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    with ProgressBar("drawing", 3, stream=stream) as bar:
        bar.advance()
    assert stream.getvalue() == ""


def test_a_terminal_sees_every_end_and_a_clean_line_after_it() -> None:
    stream = Terminal()
    with ProgressBar("drawing", 3, stream=stream) as bar:
        for _ in range(3):
            bar.advance()
    drawn = stream.getvalue().split("\r\x1b[K")
    assert drawn[1].startswith("drawing ░░░")
    assert " 0/3 " in drawn[1]
    assert "████ 3/3 " in drawn[-2]
    assert drawn[-1] == ""


def test_bytes_and_stages_without_a_count() -> None:
    stream = Terminal()
    with ProgressBar("copying", 3 << 20, "bytes", stream) as bar:
        bar.advance(3 << 20)
    assert "3/3 MiB" in stream.getvalue()
    stream = Terminal()
    with ProgressBar("reading the prompt", 0, stream=stream):
        pass
    assert "reading the prompt …" in stream.getvalue()


def test_an_interruption_leaves_a_clean_line() -> None:
    stream = Terminal()
    with pytest.raises(KeyboardInterrupt), ProgressBar("drawing", 3, stream=stream):
        raise KeyboardInterrupt
    assert stream.getvalue().endswith("\r\x1b[K")
