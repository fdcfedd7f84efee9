"""The request for a bundle: every check before the first file, and each network described once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.export.bundle.request import ExportRequest
from qwen_image_engine.export.estimate.sizes import estimate_seconds
from qwen_image_engine.export.targets import choose_target
from qwen_image_engine.reference import load
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import read_tensors


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Networks in the order in which they were built for their shapes."""
    networks: list[str] = []
    real = load.empty_network

    def empty(checkpoint: Checkpoint, name: str) -> Any:
        networks.append(name)
        return real(checkpoint, name)

    monkeypatch.setattr(load, "empty_network", empty)
    return networks


def test_each_network_is_described_once(random_checkpoint: Callable[..., Path], described: list[str]) -> None:
    checkpoint = Checkpoint.open(random_checkpoint())
    chosen = choose_target("cpu", "int8")
    request = ExportRequest.of(checkpoint, chosen, without=("vision",))
    assert request.networks == ("text_encoder", "transformer", "vae")
    assert request.components("transformer") == ["prefix", "step"]
    estimate_seconds(checkpoint, chosen, request.quantised, request.plan)
    assert described == list(request.networks)


def test_another_opened_checkpoint_is_described_anew(
    random_checkpoint: Callable[..., Path], described: list[str]
) -> None:
    first, second = (Checkpoint.open(random_checkpoint()) for _ in range(2))
    assert read_tensors(first, "vae") is read_tensors(first, "vae")
    assert read_tensors(first, "vae") == read_tensors(second, "vae")
    assert described == ["vae", "vae"]
    assert first == second
