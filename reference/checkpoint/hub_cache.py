"""Snapshots in the local Hugging Face cache, found by name and never downloaded.

Layout (huggingface_hub, "Understand caching"): <cache>/models--<org>--<name>/refs/main holds the revision whose files
are in snapshots/<revision>, as symlinks into blobs/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError

REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_cache() -> Path:
    """Return the cache folder: HF_HUB_CACHE, else HF_HOME/hub, else huggingface/hub in XDG_CACHE_HOME or ~/.cache."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return Path(os.environ[variable]).expanduser()
    if os.environ.get("HF_HOME"):
        return Path(os.environ["HF_HOME"]).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def snapshot_folder(name: str) -> Path:
    """Return the folder of the main revision of `org/name`.

    Raises:
        QwenImageError: the cache has no such repository, or lacks its main revision.
    """
    cache = hub_cache()
    repository = cache / f"models--{name.replace('/', '--')}"
    if not repository.is_dir():
        raise QwenImageError(
            f"{name}: neither a folder nor a checkpoint in the local hub cache {cache}; "
            f"pass a folder, or download it first: hf download {name}"
        )
    try:
        revision = (repository / "refs" / "main").read_text(encoding="utf-8").strip()
    except OSError:
        revision = ""
    snapshot = repository / "snapshots" / revision
    if revision and Path(revision).name == revision and snapshot.is_dir():
        return snapshot
    found = sorted(path.name for path in (repository / "snapshots").glob("*"))
    raise QwenImageError(
        f"{name}: the local hub cache has no main revision of it in {repository} "
        f"(snapshots: {', '.join(found) or 'none'}); pass the folder of a snapshot, or run: hf download {name}"
    )
