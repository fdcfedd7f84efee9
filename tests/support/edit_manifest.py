"""Changes of a manifest whose hashes fit again, so that only what a test is about can find them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qwen_image_engine.runtime.bundle.manifest import MANIFEST, facts_sha256
from qwen_image_engine.runtime.system.files import file_sha256


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a bundle, and give it the hash of the facts that it has then."""
    path = folder / MANIFEST
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    document["facts_sha256"] = facts_sha256(document)
    path.write_text(json.dumps(document), encoding="utf-8")


def rehash(folder: Path, file: str) -> None:
    """Give the manifest the hash of a changed file."""
    edit_manifest(folder, lambda document: document["files"][file].update(sha256=file_sha256(folder / file)))
