"""Versions of packages against the ranges of this distribution's metadata."""

import re
from importlib.metadata import requires

import pytest
from packaging.requirements import Requirement

from qwen_image_engine.engines.core.versions import supported_versions, unsupported_version

VERSIONS = ("0.6", "0.7.2", "1.9", "1.22.1", "1.31", "1.31.1", "1.32", "1.32.0", "1.32.9", "1.33", "1.33.0", "2026.4.1")


def requirements() -> list[Requirement]:
    """Everything that pip would install, but for development."""
    found = map(Requirement, requires("qwen-image-engine") or ())
    return [item for item in found if not str(item.marker).endswith('"dev"')]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda item: item.name)
def test_versions_are_compared_as_pip_compares_them(requirement: Requirement) -> None:
    supported = supported_versions(requirement.name)
    assert supported is not None
    assert set(supported.text.split(",")) == set(str(requirement.specifier).split(","))
    bounds = [spec.version for spec in requirement.specifier]
    for version in (*VERSIONS, *bounds, *(f"{bound}.0" for bound in bounds), *(f"{bound}.1" for bound in bounds)):
        found = unsupported_version(requirement.name, version)
        assert (found is None) == requirement.specifier.contains(version), version


def test_the_sentence_names_both_versions_and_the_extra() -> None:
    older = unsupported_version("onnxruntime", "1.22.1")
    assert older is not None
    assert older.older
    assert re.fullmatch(
        r"onnxruntime 1\.22\.1 is installed, older than the supported >=1\.\d+,<1\.\d+; "
        r"install that with: pip install 'qwen-image-engine\[cpu\]'",
        str(older),
    )
    newer = unsupported_version("openvino", "2030.1.0-999-abc-releases/2030/1")
    assert newer is not None
    assert not newer.older
    assert str(newer).startswith("openvino 2030.1.0 is installed, newer than the supported >=")
    assert unsupported_version("numpy", "1.26.4") is not None
    assert str(unsupported_version("numpy", "1.26.4")).endswith("install that with: pip install 'qwen-image-engine'")


@pytest.mark.parametrize(("package", "version"), [("transformers", "1.0"), ("unheard-of", "1.0"), ("numpy", "unknown")])
def test_a_package_without_a_range_or_a_number_is_no_fault(package: str, version: str) -> None:
    """The versions of the extra `dev` are those of the tests, and no limits for a user."""
    assert unsupported_version(package, version) is None
