"""Networks, tokenizer and pipeline of diffusers and transformers on a checkpoint's folder, to compare with.

All in fp32 and eval mode unless `dtype` says otherwise.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def load_transformer(folder: Path, dtype: str = "float32") -> Any:
    """diffusers' transformer."""
    import torch
    from diffusers import QwenImage21Transformer2DModel

    return QwenImage21Transformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=getattr(torch, dtype)
    ).eval()


def load_vae(folder: Path, dtype: str = "float32") -> Any:
    """diffusers' VAE."""
    import torch
    from diffusers import AutoencoderKLQwenImage21

    return AutoencoderKLQwenImage21.from_pretrained(folder / "vae", torch_dtype=getattr(torch, dtype)).eval()


def load_text_encoder(folder: Path, dtype: str = "float32") -> Any:
    """transformers' Qwen3-VL, vision tower included."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=getattr(torch, dtype)).eval()


def load_tokenizer(folder: Path) -> Any:
    """transformers' own tokenizer class on processor/."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "processor")


class TextProcessor:
    """The part of `Qwen3VLProcessor` that text-to-image uses, which needs no torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages: Any, tokenize: bool = True, return_dict: bool = False) -> list[list[int]]:
        """Ids of one conversation, batched as the processor batches them."""
        return [list(self.tokenizer.apply_chat_template(messages, tokenize=tokenize, return_dict=return_dict))]

    def __call__(self, text: list[str], **options: Any) -> Any:
        """`input_ids` and `attention_mask` of a batch of texts."""
        return self.tokenizer(text, **options)


def load_pipeline(folder: Path, dtype: str = "float32") -> Any:
    """diffusers' whole pipeline, text-to-image only, with its progress bar off."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Pipeline

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    pipeline = QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=load_vae(folder, dtype),
        text_encoder=load_text_encoder(folder, dtype),
        processor=TextProcessor(load_tokenizer(folder)),
        transformer=load_transformer(folder, dtype),
        sample_sigmas=index["sample_sigmas"],
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_edit_pipeline(folder: Path) -> Any:
    """The same with diffusers' and transformers' own image processors, for reference images."""
    import torch
    from diffusers import QwenImage21Pipeline

    pipeline = QwenImage21Pipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
