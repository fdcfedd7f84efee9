"""Texts for a person."""

import shlex
import sys

import pytest

from qwen_image_engine.runtime.system.text import command_line, plural


@pytest.mark.skipif(sys.platform == "win32", reason="needs a shell of POSIX")
def test_commands_are_quoted_for_the_shell() -> None:
    words = ["mkdir", "-p", "a folder/it's $HOME", "~", "plain/path-1.0"]
    assert shlex.split(command_line(*words)) == words
    assert command_line("qwen-image", "build", "out/bundle") == "qwen-image build out/bundle"


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0 steps"), (1, "1 step"), (2, "2 steps"), (-1, "-1 steps"), (1000, "1000 steps")]
)
def test_numbers_of_things(count: int, text: str) -> None:
    assert plural(count, "step") == text
