"""The transformer's step with a cache by blocks: a head of a few blocks decides whether the rest runs or is reused.

The rule is First-Block-Cache's (ParaAttention, `fbcache`): after the head, the mean magnitude of the change of the
head's residual since the last whole evaluation, over the mean magnitude of the residual there, is compared with a
threshold. Below it, the rest of the blocks does not run, and its residual of the last whole evaluation is added to the
head's output. With order 1 the residual is extrapolated in sigma from the last two whole evaluations instead, as
TaylorSeer does with finite differences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwen_image_engine.reference.networks.transformer import KeyValue, Transformer
from qwen_image_engine.runtime.model.time import time_features


@dataclass(frozen=True)
class CacheSetting:
    """A setting of the cache.

    Attributes:
        head: number of blocks of the head, F. They run at every evaluation.
        threshold: relative change of the head's residual below which the rest is skipped; 0 never skips, infinity
            always does where `warm_up` and `most_skips` allow it.
        warm_up: number of evaluations at the beginning that are whole.
        most_skips: number of consecutive skips after which an evaluation is whole.
        order: 0 reuses the residual of the last whole evaluation, 1 extrapolates it from the last two.
    """

    head: int
    threshold: float
    warm_up: int = 2
    most_skips: int = 3
    order: int = 0


@dataclass(frozen=True, eq=False)
class _Whole:
    """A whole evaluation: its sigma, and the residuals (1, N, C) of the head and of the rest."""

    sigma: float
    head: Tensor
    rest: Tensor


class CachedStep:
    """The velocity of one picture with a cache. It keeps the residuals of one trajectory; make one for each.

    Attributes:
        whole: number of whole evaluations so far.
        skipped: number of evaluations so far that ran the head alone.
        cos: cosines of the target's angles, (N, d/2).
        sin: sines of the same angles.
        cache: keys and values of the prefix, of every layer.
    """

    def __init__(
        self,
        network: Transformer,
        cos: NDArray[np.float32],
        sin: NDArray[np.float32],
        cache: Sequence[KeyValue],
        setting: CacheSetting,
    ) -> None:
        self.whole = 0
        self.skipped = 0
        self._network = network
        self.cos, self.sin = torch.as_tensor(cos), torch.as_tensor(sin)
        self.cache = list(cache)
        self._blocks = list(zip(network.transformer_blocks, self.cache, strict=True))
        self._setting = setting
        self._skips = 0
        self._last: list[_Whole] = []

    @property
    def evaluations(self) -> float:
        """Evaluations of the network; a skipped one counts as the head's share of the blocks, F / blocks.

        The projections in and out and the time embedding, which run at every step, are not counted.
        """
        return self.whole + self.skipped * self._setting.head / len(self._blocks)

    @torch.inference_mode()
    def __call__(self, latents: NDArray[np.float32], sigma: float) -> NDArray[np.float32]:
        """Return the velocity (1, N, C_out) of latents (1, N, C_in) at a noise level."""
        network = self._network
        temb = network.time_embedding(torch.as_tensor(time_features(sigma)[None]))
        modulation = network.block_modulation(temb)

        def run(x: Tensor, blocks: Sequence[tuple[torch.nn.Module, KeyValue]]) -> Tensor:
            for block, past in blocks:
                x, _ = block(x, modulation, self.cos, self.sin, past=past)
            return x

        entered = network.img_in(torch.as_tensor(latents))
        left = run(entered, self._blocks[: self._setting.head])
        residual = left - entered
        if self._skips_rest(residual):
            self.skipped, self._skips = self.skipped + 1, self._skips + 1
            x = left + self._reused(sigma)
        else:
            self.whole, self._skips = self.whole + 1, 0
            x = run(left, self._blocks[self._setting.head :])
            self._last = [*self._last[-1:], _Whole(sigma, residual, x - left)]
        velocity: NDArray[np.float32] = network.proj_out(network.norm_out(x, temb)).numpy()
        return velocity

    def _skips_rest(self, residual: Tensor) -> bool:
        setting = self._setting
        if self.whole + self.skipped < setting.warm_up or self._skips >= setting.most_skips:
            return False
        if len(self._last) <= setting.order:
            return False
        return change(residual, self._last[-1].head) < setting.threshold

    def _reused(self, sigma: float) -> Tensor:
        last = self._last[-1]
        if self._setting.order == 0:
            return last.rest
        before = self._last[-2]
        return last.rest + (last.rest - before.rest) * ((sigma - last.sigma) / (last.sigma - before.sigma))


def change(residual: Tensor, before: Tensor) -> float:
    """Return the mean magnitude of the difference of two residuals over the mean magnitude of the second."""
    size = before.abs().mean().item()
    return (residual - before).abs().mean().item() / size if size else math.inf
