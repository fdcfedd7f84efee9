"""Batches of prompts for training: tokens padded on the right, and the networks that read them."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from qwen_image_engine.reference.config import TextEncoderConfig
from qwen_image_engine.reference.text_encoder import TextEncoder
from qwen_image_engine.runtime.prompt import tokenize
from qwen_image_engine.runtime.rope import text_rotary_tables


@dataclass
class TextBatch:
    """Prompts padded on the right."""

    ids: Tensor  # (B, T)
    lengths: list[int]  # tokens after the system turn
    dropped: int  # tokens of the system turn


class Reader(nn.Module):
    """Embedding table and text encoder."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = TextEncoder(config)
        nn.init.normal_(self.embed_tokens.weight)
        initialise(self.encoder, ("o_proj.weight", "down_proj.weight"))

    def forward(self, text: TextBatch) -> Tensor:
        """States of every token, (B, T, C)."""
        config = self.encoder.config
        tables = text_rotary_tables(text.ids.shape[1], config.head_dim, config.rope_theta)
        cos, sin = (torch.from_numpy(table).to(text.ids.device) for table in tables)
        states: Tensor = self.encoder(self.embed_tokens(text.ids), cos, sin)
        return states


def tokenize_batch(tokenizer: Tokenizer, prompts: Iterable[str], device: str) -> TextBatch:
    """Template and tokenize prompts, padded on the right with token 0."""
    tokens = [tokenize(tokenizer, prompt) for prompt in prompts]
    width = max(len(t.ids) for t in tokens)
    ids = np.zeros((len(tokens), width), np.int64)
    for row, t in zip(ids, tokens, strict=True):
        row[: len(t.ids)] = t.ids
    dropped = tokens[0].dropped
    return TextBatch(torch.from_numpy(ids).to(device), [len(t.ids) - dropped for t in tokens], dropped)


def initialise(network: nn.Module, zeroed: tuple[str, ...]) -> None:
    """Linear weights keep the variance of what they read; those that end a residual branch start at zero."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for name, parameter in network.named_parameters():
        if name.endswith(zeroed):
            nn.init.zeros_(parameter)
