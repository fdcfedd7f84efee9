"""Entries: objects that a table names by module and name, imported when they are first asked for.

A table of entries names everything that it can start and imports none of it, so the table may stand below all of it
in the order of imports.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

_HOME = "qwen_image_engine"


def load_entry(entry: str) -> Any:
    """Import the object that an entry names, as "MODULE:NAME" below this package: "engines.openvino.cpu:create".

    Raises:
        ImportError: the module, or a package that the module needs, is not installed or does not load.
    """
    module, name = entry.split(":")
    return getattr(importlib.import_module(f"{_HOME}.{module}"), name)


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the `__getattr__` of a package whose public names are imported when they are first used.

    Args:
        package: full name of the package.
        homes: module of each name, below this package.
    """

    def get(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return load_entry(f"{homes[name]}:{name}")

    return get
