"""The transformer with reference images, causal and bidirectional, against diffusers in fp32 on random weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers import transformer_qwenimage21
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from torch import Tensor

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.transformer import KeyValue, Transformer
from qwen_image_engine.runtime.model.rope import rotary_tables
from qwen_image_engine.runtime.model.sequence import ImageBlock, Segment, TextRun, TokenSequence, text_mask
from qwen_image_engine.runtime.model.time import time_features
from tests.support.oracles import load_transformer

# fp32 in another order; a wrong mask, position or term is 1e-3 and more.
TOLERANCE = 1e-5

TARGET = ImageBlock(4, 6)
TWO_IMAGES: tuple[Segment, ...] = (TextRun(6), ImageBlock(2, 8), TextRun(3), ImageBlock(6, 4), TextRun(11))
ONE_IMAGE: tuple[Segment, ...] = (TextRun(2), ImageBlock(4, 4), TextRun(1))

Within = Callable[[str, float, float], None]


@pytest.fixture(scope="module", params=["narrow", "odd", "deep"])
def folder(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(request.param)


@pytest.fixture(scope="module")
def transformer(folder: Path) -> Transformer:
    network = load_network(Checkpoint.open(folder), "transformer")
    assert isinstance(network, Transformer)
    return network


@pytest.fixture(scope="module")
def oracle(folder: Path) -> Any:
    return load_transformer(folder)


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


class Sequence:
    """Random states and latents of a prefix and a target, and the arguments of diffusers' transformer for them."""

    def __init__(self, transformer: Transformer, segments: tuple[Segment, ...], batch: int = 2) -> None:
        config = transformer.config
        generator = torch.Generator().manual_seed(len(segments))
        self.segments = segments
        self.images = [segment for segment in segments if isinstance(segment, ImageBlock)]
        text = sum(segment.length for segment in segments if isinstance(segment, TextRun))
        self.states = 5 * torch.randn(batch, text, config.context_in_dim, generator=generator).exp()
        self.latents = [
            torch.randn(batch, block.height * block.width, config.in_channels, generator=generator)
            for block in (*self.images, TARGET)
        ]
        layout = TokenSequence.of(segments, TARGET)
        self.is_text = torch.from_numpy(text_mask(segments))
        self.prefix = [torch.from_numpy(table) for table in rotary_tables(layout.prefix, config.axes_dims_rope)]
        self.target = [torch.from_numpy(table) for table in rotary_tables(layout.target, config.axes_dims_rope)]

    def features(self, sigma: float) -> Tensor:
        return torch.from_numpy(time_features(sigma))[None]

    def arguments(self, sigma: float) -> dict[str, Any]:
        """The encoder's states stand in the image slots too, where nothing reads them."""
        batch, slots = len(self.states), []
        for segment in self.segments:
            if isinstance(segment, TextRun):
                slots += [False] * segment.length
            else:
                slots += [True] * (segment.height * segment.width // 4)
        states = torch.full((batch, len(slots), self.states.shape[2]), 1e3)
        states[:, ~torch.tensor(slots)] = self.states
        slots += [True] * (TARGET.height * TARGET.width // 4)
        return {
            "hidden_states": torch.cat(self.latents, dim=1),
            "encoder_hidden_states": states,
            "timestep": torch.full((batch,), sigma),
            "img_shapes": [[(1, block.height, block.width) for block in (*self.images, TARGET)]] * batch,
            "img_mask": torch.tensor(slots).expand(batch, -1),
            "return_dict": False,
        }

    def cache(self, network: Transformer) -> list[KeyValue]:
        """Results of the passes of the prefix, one after the other."""
        first, *rest = self.segments
        assert isinstance(first, TextRun)
        cache = network.prefix(self.states[:, : first.length], *(table[: first.length] for table in self.prefix))
        past, read = first.length, first.length
        for latents, text in zip(self.latents, rest[1::2], strict=False):
            assert isinstance(text, TextRun)
            end = past + latents.shape[1] + text.length
            states = self.states[:, read : read + text.length]
            tables = [table[past:end] for table in self.prefix]
            own = network.prefix_image(latents, states, *tables, cache)
            cache = [
                (torch.cat([key, own_key], dim=1), torch.cat([value, own_value], dim=1))
                for (key, value), (own_key, own_value) in zip(cache, own, strict=True)
            ]
            past, read = end, read + text.length
        assert past == len(self.prefix[0])
        return cache


@pytest.mark.parametrize("segments", [TWO_IMAGES, ONE_IMAGE], ids=["two images", "one image"])
@torch.inference_mode()
def test_prefix_passes_and_step(
    oracle: Any, transformer: Transformer, segments: tuple[Segment, ...], within: Within
) -> None:
    """A batch of two against diffusers' one pass over everything, and against its cache."""
    sequence, target = Sequence(transformer, segments), TARGET.height * TARGET.width
    cache, kept = sequence.cache(transformer), QwenImage21KVCache(transformer.config.num_layers)
    figure = "transformer with reference images against diffusers, relative L2"
    for sigma, mode in ((0.9371, "extract"), (0.1234, "cached")):
        arguments = sequence.arguments(sigma)
        found = transformer.step(sequence.latents[-1], sequence.features(sigma), *sequence.target, cache)
        within(figure, error(found, oracle(**arguments)[0][:, -target:]), TOLERANCE)
        cached = oracle(**arguments, kv_cache=kept, kv_cache_mode=mode)[0][:, -target:]
        within(figure, error(found, cached), TOLERANCE)
    for (key, value), layer in zip(cache, kept.layer_caches, strict=True):
        expected_key, expected_value = layer.get()
        within(figure, error(key, expected_key), TOLERANCE)
        within(figure, error(value, expected_value), TOLERANCE)


@torch.inference_mode()
def test_an_image_sees_itself_whole_and_nothing_behind_it(transformer: Transformer) -> None:
    """Changing the last latent of an image changes its first key in the second layer; changing the text does not."""
    sequence = Sequence(transformer, ONE_IMAGE, batch=1)
    plain = sequence.cache(transformer)
    first, last_text = 2, -1
    sequence.latents[0][:, -1] += 1
    changed = sequence.cache(transformer)
    assert not torch.equal(changed[1][0][:, first], plain[1][0][:, first])
    assert torch.equal(changed[1][0][:, :first], plain[1][0][:, :first])
    sequence.states[:, -1] += 1
    behind = sequence.cache(transformer)
    assert not torch.equal(behind[1][0][:, last_text], changed[1][0][:, last_text])
    torch.testing.assert_close(behind[1][0][:, :last_text], changed[1][0][:, :last_text], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("segments", [(TextRun(9),), TWO_IMAGES], ids=["text alone", "two images"])
@torch.inference_mode()
def test_joint(
    folder: Path,
    transformer: Transformer,
    segments: tuple[Segment, ...],
    monkeypatch: pytest.MonkeyPatch,
    within: Within,
) -> None:
    """diffusers without `causal_condition` modulates all tokens alike, and without segments masks nothing."""
    oracle = load_transformer(folder)
    oracle.register_to_config(causal_condition=False)
    monkeypatch.setattr(transformer_qwenimage21, "_qwenimage21_prefix_segments", lambda *_: [])
    sequence, target = Sequence(transformer, segments), TARGET.height * TARGET.width
    text = [table[sequence.is_text] for table in sequence.prefix]
    image = [
        torch.cat([prefix[~sequence.is_text], own])
        for prefix, own in zip(sequence.prefix, sequence.target, strict=True)
    ]
    for sigma in (1.0, 0.2):
        found = transformer.joint(
            sequence.states, torch.cat(sequence.latents, dim=1), sequence.features(sigma), *text, *image
        )
        expected = oracle(**sequence.arguments(sigma))[0][:, -target:]
        figure = "bidirectional transformer against diffusers, relative L2"
        within(figure, error(found[:, -target:], expected), TOLERANCE)
    causal = transformer.step(
        sequence.latents[-1], sequence.features(0.2), *sequence.target, sequence.cache(transformer)
    )
    assert error(causal, expected) > np.sqrt(TOLERANCE)
