"""Batches of prompts for training, with tokens padded on the right, and the networks that read them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from qwen_image_engine.reference.checkpoint.config import TextEncoderConfig, VisionConfig
from qwen_image_engine.reference.networks.text_encoder import TextEncoder
from qwen_image_engine.reference.networks.vision import Vision
from qwen_image_engine.runtime.model.rope import encoder_rotary_tables
from qwen_image_engine.runtime.model.sequence import ImageBlock, Segment, TextRun, encoder_positions
from qwen_image_engine.runtime.model.vision import interpolation, vision_patches, vision_rotary_tables
from qwen_image_engine.runtime.text.prompt import tokenize

MEAN_STD = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
"""Mean and standard deviation of the vision tower's pixels, as in the released processor."""


@dataclass
class TextBatch:
    """A batch of prompts padded on the right, all after the same number of reference images of the same size.

    Attributes:
        ids: Token ids (B, T), system turn and image slots included.
        lengths: Tokens of each prompt in the last run of text; only this run is padded.
        dropped: Tokens of the system turn.
        segments: Segments of the longest prompt, after the system turn.

    """

    ids: Tensor
    lengths: list[int]
    dropped: int
    segments: tuple[Segment, ...]

    def text(self) -> Tensor:
        """Return the mask of text among the tokens after the system turn, (T - dropped,)."""
        parts = [
            torch.full((s.length if isinstance(s, TextRun) else s.height * s.width // 4,), isinstance(s, TextRun))
            for s in self.segments
        ]
        return torch.cat(parts)


class Reader(nn.Module):
    """The text reader: embedding table, vision tower and text encoder."""

    def __init__(self, config: TextEncoderConfig, vision: VisionConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.encoder = TextEncoder(config)
        nn.init.normal_(self.embed_tokens.weight)
        initialise(self.encoder, ("o_proj.weight", "down_proj.weight"))
        self.vision = Vision(vision)
        initialise(self.vision, ("attn.proj.weight", "mlp.linear_fc2.weight", "bias"))
        nn.init.normal_(self.vision.patch_embed.proj.weight, std=self.vision.patch_embed.proj.weight[0].numel() ** -0.5)
        nn.init.normal_(self.vision.pos_embed.weight, std=0.5)
        for merger in self.vision.deepstack_merger_list:
            nn.init.zeros_(merger.get_parameter("linear_fc2.weight"))

    def forward(self, text: TextBatch, rgb: NDArray[np.uint8] | None = None) -> Tensor:
        """Return the states of every token after the system turn, image slots included.

        Args:
            text: B prompts.
            rgb: (B, R, H, W, 3), reference images over white; None without reference images.

        Returns:
            (B, T - dropped, C).

        """
        config, device = self.encoder.config, text.ids.device
        first, *rest = text.segments
        assert isinstance(first, TextRun)
        positions = encoder_positions([TextRun(first.length + text.dropped), *rest])
        tables = encoder_rotary_tables(positions, config.head_dim, config.rope_theta, config.mrope_section)
        cos, sin = (torch.from_numpy(table).to(device) for table in tables)
        embeddings = self.embed_tokens(text.ids)
        if rgb is None:
            zeros = torch.zeros((), device=device)
            states = self.encoder(embeddings, cos, sin, [zeros] * config.deepstack)
        else:
            slots = torch.cat([torch.zeros(text.dropped, dtype=torch.bool), ~text.text()]).to(device)
            embedded, *deepstack = (self._at(slots, features, embeddings) for features in self._look(rgb, device))
            states = self.encoder(torch.where(slots[:, None], embedded, embeddings), cos, sin, deepstack)
        read: Tensor = states[:, text.dropped :]
        return read

    def _look(self, rgb: NDArray[np.uint8], device: torch.device) -> list[Tensor]:
        """Return the features of the reference images, each (B, R * slots, C)."""
        config, (batch, _, height, width, _) = self.vision.config, rgb.shape
        patches = np.stack([vision_patches(image, *MEAN_STD) for image in rgb.reshape(-1, height, width, 3)])
        tables = (
            *interpolation(height // 16, width // 16, config.position_side),
            *vision_rotary_tables(height // 16, width // 16, config.head_dim, config.rope_theta),
        )
        features = self.vision(*(torch.from_numpy(array).to(device) for array in (patches, *tables)))
        return [feature.reshape(batch, -1, feature.shape[-1]) for feature in features]

    @staticmethod
    def _at(slots: Tensor, features: Tensor, like: Tensor) -> Tensor:
        """Place features (B, R * slots, C) at their slots in a tensor (B, T, C) of zeros."""
        placed = torch.zeros_like(like)
        placed[:, slots] = features.to(like.dtype)
        return placed


def tokenize_batch(
    tokenizer: Tokenizer, prompts: Sequence[str], device: str, references: Sequence[ImageBlock] = ()
) -> TextBatch:
    """Tokenize prompts with the template after reference images of these sizes, padded on the right with token 0."""
    tokens = [tokenize(tokenizer, prompt, references) for prompt in prompts]
    width = max(len(t.ids) for t in tokens)
    ids = np.zeros((len(tokens), width), np.int64)
    for row, t in zip(ids, tokens, strict=True):
        row[: len(t.ids)] = t.ids
    dropped = tokens[0].dropped
    first, *rest = max(tokens, key=lambda t: len(t.ids)).segments
    assert isinstance(first, TextRun)
    lengths = [last.length for t in tokens if isinstance(last := t.segments[-1], TextRun)]
    if not rest:
        lengths = [length - dropped for length in lengths]
    segments = (TextRun(first.length - dropped), *rest)
    return TextBatch(torch.from_numpy(ids).to(device), lengths, dropped, segments)


def initialise(network: nn.Module, zeroed: tuple[str, ...]) -> None:
    """Initialise a network: linears keep the variance of their input, and parameters that end in `zeroed` are zero.

    `zeroed` are the weights at the end of residual branches.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    for name, parameter in network.named_parameters():
        if name.endswith(zeroed):
            nn.init.zeros_(parameter)
