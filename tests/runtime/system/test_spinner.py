"""A spinner on a terminal, and silence elsewhere."""

import io

from qwen_image_engine.runtime.system.progress import Spinner


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_sees_words_and_is_left_clean() -> None:
    stream = Terminal()
    with Spinner("building step", stream) as spinner:
        spinner.show("starting")
        spinner.show("Building 1/2")
    first, second, last = stream.getvalue().split("\r\x1b[K")[1:]
    assert first.endswith("building step 0 s: starting")
    assert second.endswith("Building 1/2")
    assert first[0] != second[0]
    assert last == ""


def test_anything_else_sees_nothing() -> None:
    stream = io.StringIO()
    with Spinner("building step", stream) as spinner:
        spinner.show("starting")
    assert stream.getvalue() == ""
