"""The compiler's accounts of a bundle's plans, read from the files beside them."""

from __future__ import annotations

from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import read_regular
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.engines.tensorrt.build.summary import ProfileSummary, summary
from qwen_image_engine.runtime.bundle.files import check_files
from qwen_image_engine.runtime.bundle.manifest import Manifest

MAX_ACCOUNT_BYTES = 64 << 20
"""Largest account that is read. One of a step of 32 blocks in three profiles takes 2 MB."""


def read_account(folder: Path, manifest: Manifest, plan: PlanEntry) -> tuple[ProfileSummary, ...]:
    """Return the compiler's account of a plan by profile; empty for a plan of an older version, which has none.

    Raises:
        QwenImageError: the file of the account is missing, is not as the manifest has it, or has another form.
    """
    text = account_text(folder, manifest, plan)
    return () if text is None else summary(text)


def account_text(folder: Path, manifest: Manifest, plan: PlanEntry) -> str | None:
    """Return the text of the file beside a plan; None for a plan of an older version, which has none.

    Raises:
        QwenImageError: the file is missing, is not as the manifest has it, is too large or is not text.
    """
    if plan.layers is None:
        return None
    check_files(folder, manifest, [plan.layers])
    path = folder / plan.layers
    try:
        return read_regular(path, MAX_ACCOUNT_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise QwenImageError(f"{path}: cannot be read ({error}); build the plan again") from error
