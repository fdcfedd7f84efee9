"""Everything about a checkpoint that can be wrong and be seen without its weights, before any work is done."""

from __future__ import annotations

from collections.abc import Collection

from qwen_image_engine.export.selection import networks, selected
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.pipeline import schedule_config
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer


def check_checkpoint(checkpoint: Checkpoint, components: Collection[str] | None = None) -> None:
    """Check the tokenizer, the schedule, and name, shape and dtype of every tensor that `components` (all) read.

    Raises:
        QwenImageError: one of them is not what the runtime or a network needs.
    """
    load_tokenizer(checkpoint.folder)
    schedule_config(checkpoint)
    checkpoint.token_embeddings()
    for network in networks(selected(checkpoint) if components is None else components):
        read_tensors(checkpoint, network)
