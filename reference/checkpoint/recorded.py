"""The checkpoint that a bundle was made from: opened where its manifest says, and compared with what it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint, Source
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.runtime.bundle.manifest import Manifest


def open_recorded(
    manifest: Manifest,
    named: Source | None,
    transformer_file: str | Path | None = None,
    loras: Sequence[LoraFile] | None = None,
    attention: str | None = None,
    *,
    flags: Sequence[str] = ("-m", "--transformer", "--lora"),
) -> Checkpoint:
    """Open the checkpoint that a bundle was made from; what is not named is taken from where it was then.

    Args:
        manifest: of the bundle.
        named: the checkpoint, if it is somewhere else now.
        transformer_file: the single file of its transformer, likewise.
        loras: its adapters, likewise.
        attention: of its transformer, if the bundle's is not meant.
        flags: those of the command that can name a part, for errors.

    Raises:
        QwenImageError: the checkpoint is missing, incomplete, damaged, or of another architecture.
    """
    source = manifest.checkpoint
    recorded = {
        "-m": (named, source.path),
        "--transformer": (transformer_file, source.transformer_file),
        "--lora": (loras, manifest.loras),
    }
    unnamed = [flag for flag, (given, then) in recorded.items() if flag in flags and given is None and then]
    try:
        return Checkpoint.open(
            source.path if named is None else named,
            transformer_file=source.transformer_file if transformer_file is None else transformer_file,
            loras=[LoraFile(Path(lora.path), lora.scale) for lora in manifest.loras] if loras is None else loras,
            attention=source.attention if attention is None else attention,
        )
    except QwenImageError as error:
        if not unnamed:
            raise
        raise QwenImageError(f"{error}; say where the bundle's checkpoint is with {', '.join(unnamed)}") from error


def check_recorded(
    bundle: str | Path, checkpoint: Checkpoint, what: str, sha256: str, expected: str, advice: str
) -> None:
    """Raise if a hash of a checkpoint is not the one in the bundle's manifest.

    Args:
        bundle: its folder.
        checkpoint: the opened one.
        what: "configuration" or "weights".
        sha256: of the opened one.
        expected: by the manifest.
        advice: end of the error: what to do.

    Raises:
        QwenImageError: the hashes differ.
    """
    if sha256 != expected:
        verb = "have" if what == "weights" else "has"
        raise QwenImageError(
            f"{bundle} was not made from {checkpoint.place}: the checkpoint's {what} {verb} sha256 {sha256[:12]}…, the "
            f"bundle's {expected[:12]}…; {advice}"
        )
