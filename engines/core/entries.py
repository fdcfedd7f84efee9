"""Entries: functions named by module and name in a table, imported when they are asked for.

A table of entries knows everything that it can start and imports none of it, so it may stand below all of them.
"""

import importlib
from typing import Any

_HOME = "qwen_image_engine"


def load_entry(entry: str) -> Any:
    """Import the object that an entry names, as "MODULE:NAME" below this package: "engines.openvino.cpu:create".

    Raises:
        ImportError: the module, or a package that it needs, is not installed or does not load.
    """
    module, name = entry.split(":")
    return getattr(importlib.import_module(f"{_HOME}.{module}"), name)
