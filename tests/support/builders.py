"""Distributions that build plans, installed as far as `build` can see."""

from importlib.metadata import PackageNotFoundError

import pytest


def install_builders(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    """Let `build` find these distributions in these versions, with underscores for dashes, and no others."""

    def version(name: str) -> str:
        found = versions.get(name.replace("-", "_"))
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr("qwen_image_engine.engines.tensorrt.package.version", version)
