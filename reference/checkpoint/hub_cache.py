"""Snapshots in the local Hugging Face cache, found by name and never downloaded.

Layout (huggingface_hub, "Understand caching"): <cache>/models--<org>--<name>/refs/main holds the revision whose files
are in snapshots/<revision>, as symlinks into blobs/.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.runtime.system.files import with_home

REPOSITORY_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def hub_cache() -> Path:
    """Return the cache folder: HF_HUB_CACHE, else HF_HOME/hub, else huggingface/hub in XDG_CACHE_HOME or ~/.cache.

    Raises:
        QwenImageError: the folder is in a home folder, and there is none.
    """
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if os.environ.get(variable):
            return with_home(os.environ[variable])
    if os.environ.get("HF_HOME"):
        return with_home(os.environ["HF_HOME"]) / "hub"
    return with_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface" / "hub"


def snapshot_folder(name: str) -> Path:
    """Return the folder of the main revision of `org/name`.

    Raises:
        QwenImageError: there is no cache, it has no such repository, or it lacks the main revision.
    """
    try:
        cache = hub_cache()
    except QwenImageError as error:
        raise QwenImageError(
            f"{name}: not a folder, and the local hub cache is not found ({error}); pass a folder, or set HF_HOME"
        ) from error
    repository = cache / f"models--{name.replace('/', '--')}"
    if not repository.is_dir():
        raise QwenImageError(
            f"{name}: neither a folder nor a checkpoint in the local hub cache {cache}; "
            f"pass a folder, or download it first: hf download {name}"
        )
    try:
        revision = read_regular(repository / "refs" / "main", 1000).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError):
        revision = ""
    snapshot = repository / "snapshots" / revision
    if revision and Path(revision).name == revision and snapshot.is_dir():
        return snapshot
    found = sorted(path.name for path in (repository / "snapshots").glob("*"))
    raise QwenImageError(
        f"{name}: the local hub cache has no main revision of it in {repository} "
        f"(snapshots: {', '.join(found) or 'none'}); pass the folder of a snapshot, or run: hf download {name}"
    )
