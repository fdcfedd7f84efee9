"""The command as a program calls it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from qwen_image_engine.runtime.cli.main import main


@pytest.fixture
def document(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """`document(*arguments)`: the one JSON document that a verb prints, exit code 0."""

    def read(*arguments: object) -> Any:
        capsys.readouterr()
        assert main([*map(str, arguments), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return read
