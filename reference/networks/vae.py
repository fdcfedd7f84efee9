"""The 16x RGBA autoencoder, one frame at a time: `AutoencoderKLQwenImage21` of diffusers without its video machinery.

Parameter names are the checkpoint's. On a single frame the released network is plain 2-D: its causal convolutions see
one frame, its `time_conv` layers are never reached, and its shortcuts pad time with a zero frame on the way down and
keep the last copy on the way up.
"""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwen_image_engine.reference.checkpoint.config import VaeConfig
from qwen_image_engine.reference.networks.layers import attention


class ChannelNorm(nn.Module):
    """The norm x / ||x||_2 * sqrt(C) * gamma, with ||x||_2 over channels, in fp32.

    gamma is stored as (C, 1, 1) or (C, 1, 1, 1).
    """

    def __init__(self, channels: int, trailing: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, *[1] * trailing))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C, H, W)."""
        wide = x.float()
        inverse_norm = wide.square().sum(dim=1, keepdim=True).clamp_min(1e-24).rsqrt()
        return (wide * inverse_norm).to(x.dtype) * (self.gamma.shape[0] ** 0.5 * self.gamma.view(-1, 1, 1))


class ResidualBlock(nn.Module):
    """A residual block: norm, SiLU and 3x3 convolution, twice, plus a shortcut that is 1x1 if the channels change."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(channels, 3)
        self.conv1 = nn.Conv2d(channels, out_channels, 3, padding=1)
        self.norm2 = ChannelNorm(out_channels, 3)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(channels, out_channels, 1) if channels != out_channels else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C', H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        return self.conv2(F.silu(self.norm2(h))) + self.conv_shortcut(x)


class SpatialAttention(nn.Module):
    """Single-head attention over all pixels of the mid block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, 2)
        self.to_qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C, H, W)."""
        b, c, h, w = x.shape
        qkv = self.to_qkv(self.norm(x)).flatten(2).transpose(1, 2)  # (B, HW, 3C)
        q, k, v = (t.unsqueeze(2) for t in qkv.chunk(3, dim=-1))  # (B, HW, 1, C)
        out = attention(q, k, v).transpose(1, 2).reshape(b, c, h, w)
        return x + self.proj(out)


class MidBlock(nn.Module):
    """The mid block, at the lowest resolution: residual block, attention, residual block."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])
        self.attentions = nn.ModuleList([SpatialAttention(channels)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C, H, W)."""
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Downsample(nn.Module):
    """A downsampler: zero padding on the right and bottom, then a 3x3 convolution of stride 2."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(channels, channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C, H/2, W/2)."""
        return self.resample(x)


class Upsample(nn.Module):
    """An upsampler: every pixel doubled ("nearest-exact", which at x2 is "nearest"), then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        # Index 0 stands for the resize, so that the convolution is named resample.1 as in the checkpoint.
        self.resample = nn.Sequential(nn.Identity(), nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C, 2H, 2W)."""
        return self.resample(F.interpolate(x.float(), scale_factor=2.0, mode="nearest").to(x.dtype))


class AverageDown(nn.Module):
    """The shortcut on the way down: space to channels, then the mean over groups of channels.

    If the released network also halves time, it pads a zero frame in front, and this frame takes part in the mean.
    """

    def __init__(self, channels: int, out_channels: int, temporal: bool, spatial: bool) -> None:
        super().__init__()
        self.channels, self.out_channels, self.temporal, self.spatial = channels, out_channels, temporal, spatial

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C', H/2, W/2), or the same size if the block does not downsample."""
        if self.spatial:
            # F.pixel_unshuffle, written out because it exports as three times as many nodes.
            x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2)).permute(0, 1, 3, 5, 2, 4)  # (B, C, 2, 2, h, w)
            x = x.flatten(1, 3)  # (B, C*4, h, w), channel-major
        if self.temporal:
            x = x.unflatten(1, (self.channels, -1))  # (B, C, 4, h, w)
            x = F.pad(x, (0, 0, 0, 0, x.shape[2], 0)).flatten(1, 2)  # frame-major inside a channel
        return x.unflatten(1, (self.out_channels, -1)).mean(dim=2)


class DuplicateUp(nn.Module):
    """The shortcut on the way up: channels repeated, the last of two frames kept, then channels to space."""

    index: Tensor

    def __init__(self, channels: int, out_channels: int, temporal: bool) -> None:
        super().__init__()
        frames = 2 if temporal else 1
        repeats = out_channels * frames * 4 // channels
        # On the CPU by name: derived values stay real where the module is built on "meta".
        source = torch.arange(channels, device="cpu").repeat_interleave(repeats).view(out_channels, frames, 4)
        self.register_buffer("index", source[:, -1].flatten(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C', 2H, 2W)."""
        return F.pixel_shuffle(x.index_select(1, self.index), 2)


class DownBlock(nn.Module):
    """A block of the encoder: residual blocks and a downsampler, plus the averaging shortcut."""

    def __init__(self, channels: int, out_channels: int, blocks: int, temporal: bool, spatial: bool) -> None:
        super().__init__()
        self.avg_shortcut = AverageDown(channels, out_channels, temporal, spatial)
        widths = [channels] + [out_channels] * blocks
        self.resnets = nn.ModuleList([ResidualBlock(a, b) for a, b in pairwise(widths)])
        self.downsampler = Downsample(out_channels) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C', H/2, W/2), or the same size in the last block."""
        h = x
        for resnet in self.resnets:
            h = resnet(h)
        if self.downsampler is not None:
            h = self.downsampler(h)
        return h + self.avg_shortcut(x)


class UpBlock(nn.Module):
    """A block of the decoder: residual blocks and an upsampler, plus the duplicating shortcut."""

    def __init__(self, channels: int, out_channels: int, blocks: int, temporal: bool, spatial: bool) -> None:
        super().__init__()
        widths = [channels] + [out_channels] * (blocks + 1)
        self.resnets = nn.ModuleList([ResidualBlock(a, b) for a, b in pairwise(widths)])
        self.upsampler = Upsample(out_channels) if spatial else None
        self.avg_shortcut = DuplicateUp(channels, out_channels, temporal) if spatial else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) -> (B, C', 2H, 2W), or the same size in the last block."""
        h = x
        for resnet in self.resnets:
            h = resnet(h)
        if self.upsampler is None or self.avg_shortcut is None:
            return h
        return self.upsampler(h) + self.avg_shortcut(x)


class Encoder(nn.Module):
    """The encoder, from an image to twice z_dim channels (mean, log variance)."""

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        widths = [config.base_dim * m for m in (1, *config.dim_mult)]
        temporal = (*config.temperal_downsample, False)
        last = len(config.dim_mult) - 1
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            [
                DownBlock(widths[i], widths[i + 1], config.num_res_blocks, temporal[i], i != last)
                for i in range(last + 1)
            ]
        )
        self.mid_block = MidBlock(widths[-1])
        self.norm_out = ChannelNorm(widths[-1], 3)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.z_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 4, 16h, 16w) -> (B, 2z, h, w)."""
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """The decoder, from latents to an image, in two stages.

    `mid` sees the whole picture, `up` only a neighbourhood of each pixel. The first up block is local too, but belongs
    to `mid`: `up` without it needs a neighbourhood half as wide (`up_halo`), and `mid` with it takes 1.5 GB for
    2048x2048 at the released widths, weights included.
    """

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        mult = config.dim_mult[::-1]
        widths = [config.decoder_base_dim * m for m in (mult[0], *mult)]
        temporal = (*config.temperal_downsample[::-1], False)
        last = len(mult) - 1
        self.conv_in = nn.Conv2d(config.z_dim, widths[0], 3, padding=1)
        self.mid_block = MidBlock(widths[0])
        self.up_blocks = nn.ModuleList(
            [UpBlock(widths[i], widths[i + 1], config.num_res_blocks, temporal[i], i != last) for i in range(last + 1)]
        )
        self.norm_out = ChannelNorm(widths[-1], 3)
        self.conv_out = nn.Conv2d(widths[-1], config.out_channels, 3, padding=1)

    def mid(self, z: Tensor) -> Tensor:
        """Map (B, z, h, w) -> (B, C, 2h, 2w)."""
        return self.up_blocks[0](self.mid_block(self.conv_in(z)))

    def up(self, x: Tensor) -> Tensor:
        """Map (B, C, 2h, 2w) -> (B, 4, 16h, 16w)."""
        for block in self.up_blocks[1:]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))

    def forward(self, z: Tensor) -> Tensor:
        """Map (B, z, h, w) -> (B, 4, 16h, 16w)."""
        return self.up(self.mid(z))


def up_halo(config: VaeConfig) -> int:
    """Return the number of latents on each side of a tile that the tile's pixels depend on through `Decoder.up`.

    A 3x3 convolution sees one pixel further, of its own resolution. The sum in pixels of the image, for n residual
    blocks and the released network's n = 2, is:

        n + 1 blocks of two convolutions at each of 8, 4, 2, 1 image pixels a pixel    15 * 2(n + 1)    90
        the upsamplers' convolutions, after doubling                                   4 + 2 + 1         7
        conv_out                                                                       1                 1

    98 pixels are 6.1 latents of 16, hence 7. With the first up block in `up` it would be 202 pixels, 13 latents.
    """
    levels = len(config.dim_mult)
    pixels = 1
    for level in range(1, levels):
        scale = 2 ** (levels - 1 - level)  # image pixels to one of this block's
        pixels += scale * 2 * (config.num_res_blocks + 1) + scale // 2
    return math.ceil(pixels / 2 ** (levels - 1))


class Vae(nn.Module):
    """The encoder and the decoder with the latent normalisation of the checkpoint's config.

    Args:
        config: Sizes, and `latents_mean` / `latents_std` of every latent channel.

    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: VaeConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)
        self.register_buffer("mean", torch.tensor(config.latents_mean, device="cpu").view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.latents_std, device="cpu").view(-1, 1, 1), persistent=False)

    def moments(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Map (B, 4, 16h, 16w) in [-1, 1] -> mean and log variance, each (B, z, h, w), not normalised."""
        mean, logvar = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype))).chunk(2, dim=1)
        return mean, logvar

    def encode(self, image: Tensor) -> Tensor:
        """Return the normalised mode of the posterior: (B, 4, 16h, 16w) in [-1, 1] -> (B, z, h, w)."""
        return (self.moments(image)[0] - self.mean) / self.std

    def features(self, latents: Tensor) -> Tensor:
        """Map normalised latents to the decoder's features: (B, z, h, w) -> (B, C, 2h, 2w)."""
        own = (latents * self.std + self.mean).to(self.post_quant_conv.weight.dtype)
        return self.decoder.mid(self.post_quant_conv(own))

    def image(self, features: Tensor) -> Tensor:
        """Map features to an image clamped to [-1, 1]: (B, C, 2h, 2w) -> (B, 4, 16h, 16w)."""
        return self.decoder.up(features.to(self.post_quant_conv.weight.dtype)).clamp(-1, 1)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode normalised latents to an image clamped to [-1, 1]: (B, z, h, w) -> (B, 4, 16h, 16w)."""
        return self.image(self.features(latents))
