"""Supported versions of other packages, read from this distribution's own metadata, where pip reads them too."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, requires

DISTRIBUTION = "qwen-image-engine"

_REQUIREMENT = re.compile(r"""([\w.-]+)\s*(?:\[[^]]*\])?\s*([^;]*?)\s*(?:;.*extra\s*==\s*["']([\w-]+)["'].*)?""")
_BOUND = re.compile(r"(>=|<|==)\s*(\d+(?:\.\d+)*)")
_FOR_DEVELOPMENT = "dev"


@dataclass(frozen=True)
class SupportedVersions:
    """The supported versions of a package.

    Attributes:
        text: range as pip writes it, ">=1.32,<1.33".
        install: command that installs a supported version.
    """

    text: str
    install: str


@dataclass(frozen=True)
class UnsupportedVersion:
    """An installed version outside the supported range. Its text names both.

    Attributes:
        package: name of the package.
        version: installed version.
        supported: supported versions.
        older: whether the version is below the range; otherwise it is above.
    """

    package: str
    version: str
    supported: SupportedVersions
    older: bool

    def __str__(self) -> str:
        where = "older" if self.older else "newer"
        version = self.version.partition("-")[0]  # OpenVINO names its build and branch too
        return (
            f"{self.package} {version} is installed, {where} than the supported {self.supported.text}; "
            f"install that with: {self.supported.install}"
        )


@cache
def supported_versions(package: str) -> SupportedVersions | None:
    """Return the supported versions of the distribution `package`; None if this distribution does not name any."""
    for requirement in _requirements():
        found = _REQUIREMENT.fullmatch(requirement)
        if found is None or found[1].lower() != package.lower().replace("_", "-") or found[3] == _FOR_DEVELOPMENT:
            continue
        text = ",".join(sorted(found[2].replace(" ", "").split(","), reverse=True))
        return SupportedVersions(text, f"pip install '{DISTRIBUTION}{f'[{found[3]}]' if found[3] else ''}'")
    return None


def unsupported_version(package: str, version: str) -> UnsupportedVersion | None:
    """Compare an installed version with the supported ones. Return None if it is supported or no range is known.

    The numbers of the release alone count: "2026.4.1-22982-e213a147257" is 2026.4.1, and "1.33.0rc1" is 1.33.0.
    """
    supported = supported_versions(package)
    release = re.match(r"\d+(?:\.\d+)*", version)
    if supported is None or release is None:
        return None
    found = _numbers(release[0])
    for comparison, bound in _BOUND.findall(supported.text):
        if comparison in (">=", "==") and found < _numbers(bound):
            return UnsupportedVersion(package, version, supported, older=True)
        if found > _numbers(bound) if comparison == "==" else comparison == "<" and found >= _numbers(bound):
            return UnsupportedVersion(package, version, supported, older=False)
    return None


@cache
def _requirements() -> list[str]:
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # the sources alone, without an installation
        return []


def _numbers(release: str) -> tuple[int, ...]:
    return tuple(map(int, re.sub(r"(\.0+)+$", "", release).split(".")))
