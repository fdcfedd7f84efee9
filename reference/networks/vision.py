"""The Qwen3-VL vision tower with DeepStack: it maps patches of a reference image to features of the encoder's width.

One graph serves every image size: the host gives, for each patch, the rows of the learned position table to mix and
their weights, and the rotary tables (`runtime.model.vision`). Patches come in 2x2 blocks, and each block becomes one
token. Parameter names are the checkpoint's without `model.visual.`.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from qwen_image_engine.reference.checkpoint.config import VisionConfig
from qwen_image_engine.reference.networks.layers import attention, rotary

EPS = 1e-6
MERGED = 4
"""Patches that become one token."""


class PatchEmbedding(nn.Module):
    """A convolution with kernel size equal to stride: one linear over the pixels of a patch."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv3d(3, config.hidden_size, (2, 16, 16), (2, 16, 16))

    def forward(self, patches: Tensor) -> Tensor:
        """Map (B, N, 1536), pixels as (channel, frame, row, column) -> (B, N, C)."""
        return F.linear(patches, self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Full self-attention between the patches of an image."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (B, N, C) -> (B, N, C)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = rotary(q, cos, sin, interleaved=False), rotary(k, cos, sin, interleaved=False)
        return self.proj(attention(q, k, v))


class FeedForward(nn.Module):
    """The feed-forward layer: two linears with a GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) -> (B, N, C)."""
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class Block(nn.Module):
    """A transformer block: pre-norm attention and feed-forward."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, EPS)
        self.norm2 = nn.LayerNorm(config.hidden_size, EPS)
        self.attn = Attention(config)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map (B, N, C) -> (B, N, C)."""
        x = x + self.attn(self.norm1(x), cos, sin)
        return x + self.mlp(self.norm2(x))


class Merger(nn.Module):
    """A merger of 2x2 patches into one token of the text encoder's width.

    DeepStack's mergers (`norm_after`) normalise the four patches together.
    """

    def __init__(self, config: VisionConfig, *, norm_after: bool) -> None:
        super().__init__()
        self.width = MERGED * config.hidden_size
        self.norm_after = norm_after
        self.norm = nn.LayerNorm(self.width if norm_after else config.hidden_size, EPS)
        self.linear_fc1 = nn.Linear(self.width, self.width)
        self.linear_fc2 = nn.Linear(self.width, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, N, C) -> (B, N/4, out_hidden_size)."""
        b, _, c = x.shape
        x = x if self.norm_after else self.norm(x)
        x = x.reshape(b, -1, MERGED * c)
        x = self.norm(x) if self.norm_after else x
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


class Vision(nn.Module):
    """The `Qwen3VLVisionModel` on images of one size."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbedding(config)
        self.pos_embed = nn.Embedding(config.position_side**2, config.hidden_size)
        self.blocks = nn.ModuleList([Block(config) for _ in range(config.depth)])
        self.merger = Merger(config, norm_after=False)
        self.deepstack_merger_list = nn.ModuleList([Merger(config, norm_after=True) for _ in config.deepstack])

    def forward(self, patches: Tensor, indices: Tensor, weights: Tensor, cos: Tensor, sin: Tensor) -> list[Tensor]:
        """Return the features of images.

        Args:
            patches: (B, N, 1536), see `runtime.model.vision.vision_patches`.
            indices: (N, 4) int64, rows of the position table around each patch.
            weights: (N, 4) float32, bilinear weight of each of these rows.
            cos: (N, head_dim/2) float32, see `runtime.model.vision.vision_rotary_tables`.
            sin: Sines of the same angles, shaped like cos.

        Returns:
            Embeddings for the image's slots, then the DeepStack features of each block in `config.deepstack`, all
            (B, N/4, out_hidden_size).

        """
        positions = (self.pos_embed(indices) * weights.unsqueeze(-1)).sum(1)  # (N, C)
        x = self.patch_embed(patches) + positions.to(patches.dtype)
        deepstack: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            x = block(x, cos, sin)
            if index in self.config.deepstack:
                deepstack.append(self.deepstack_merger_list[len(deepstack)](x))
        return [self.merger(x), *deepstack]
