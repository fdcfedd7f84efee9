"""What a figure was measured on and with: machine, versions, commit. Every result file carries it."""

import subprocess
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qwen_image_engine.runtime.machine import Machine, package_versions


def environment() -> dict[str, Any]:
    return {"machine": asdict(Machine.here()), "versions": package_versions(), "commit": commit()}


def commit() -> str | None:
    """The commit of this tree, with `-dirty` where files differ from it; None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() or None
