"""The checkpoint that a bundle was made from: opened from the paths in the manifest, and compared with the manifest."""

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
    variant: str | None = None,
    *,
    flags: Sequence[str] = ("-m", "--transformer", "--lora"),
) -> Checkpoint:
    """Open the checkpoint that a bundle was made from. Sources that are not given come from the manifest.

    Args:
        manifest: manifest of the bundle.
        named: source of the checkpoint; None for the path in the manifest.
        transformer_file: single file of the transformer; None for the path in the manifest, if any.
        loras: adapters, in the order of merging; None for the adapters in the manifest.
        attention: attention of the transformer; None for the attention in the manifest, if any.
        variant: variant of the weight files; None for the variant in the manifest, if any.
        flags: flags of the command that name a source, for the text of errors.

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
            variant=source.variant if variant is None else variant,
        )
    except QwenImageError as error:
        if not unnamed:
            raise
        raise QwenImageError(f"{error}; say where the bundle's checkpoint is with {', '.join(unnamed)}") from error


def check_recorded(
    bundle: str | Path, checkpoint: Checkpoint, what: str, sha256: str, expected: str, advice: str
) -> None:
    """Raise if a hash of a checkpoint differs from the hash in the bundle's manifest.

    Args:
        bundle: folder of the bundle.
        checkpoint: the opened checkpoint.
        what: "configuration" or "weights".
        sha256: SHA-256 of the opened checkpoint's configuration or weights.
        expected: SHA-256 in the manifest.
        advice: end of the error's text: the remedy.

    Raises:
        QwenImageError: the hashes differ.
    """
    if sha256 != expected:
        verb = "have" if what == "weights" else "has"
        raise QwenImageError(
            f"{bundle} was not made from {checkpoint.place}: the checkpoint's {what} {verb} sha256 {sha256[:12]}…, the "
            f"bundle's {expected[:12]}…; {advice}"
        )
