"""The environment of a measurement: machine, versions, commit. Every result file contains it."""

import os
import subprocess
from dataclasses import asdict
from typing import Any

from benchmarks.common.paths import ROOT
from qwen_image_engine.runtime.system.machine import Machine, package_versions


def environment() -> dict[str, Any]:
    return {"machine": asdict(Machine.here()), "versions": package_versions(), "commit": commit()}


def commit() -> str | None:
    """Return the commit of this tree, with `-dirty` if tracked files other than results differ.

    Outside a repository, return GIT_COMMIT. None if it is not set.
    """
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude,top)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return os.environ.get("GIT_COMMIT")
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    found = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    return found.stdout.strip()
