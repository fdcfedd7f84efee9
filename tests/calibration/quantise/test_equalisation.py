"""Equalised networks compute what they did, bit for bit, and planted outliers are found again."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.quantisation.naive_w8a8 import quantise_naively
from qwen_image_engine.calibration.quantise.channel_scales import EqualisedPair
from qwen_image_engine.calibration.quantise.network import quantised_network
from qwen_image_engine.calibration.quantise.smoothing import equalising_scales, for_heads, shared_by_heads
from qwen_image_engine.calibration.rules.linears import WEIGHT
from qwen_image_engine.calibration.rules.quantisation import Quantisation, Rule
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.text_encoder import TextEncoder
from qwen_image_engine.reference.networks.transformer import Transformer

PER_TOKEN = Quantisation(("transformer", "text_encoder"), (Rule("*", "int8"),))


def encoder_output(network: TextEncoder, hidden: int, head_dim: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    embeddings = torch.randn(2, 9, hidden, generator=generator)
    angles = torch.randn(9, head_dim // 2, generator=generator)
    with torch.inference_mode():
        return network(
            embeddings, angles.cos(), angles.sin(), [torch.zeros_like(embeddings)] * network.config.deepstack
        )


def transformer_output(network: Transformer, checkpoint: Checkpoint) -> torch.Tensor:
    config = checkpoint.transformer
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(2, 5, config.context_in_dim, generator=generator)
    latents = torch.randn(2, 6, config.in_channels, generator=generator)
    angles = torch.randn(11, config.attention_head_dim // 2, generator=generator)
    with torch.inference_mode():
        cos, sin = angles.cos(), angles.sin()
        cache = network.prefix(text, cos[:5], sin[:5])
        return network.step(latents, torch.randn(1, 256, generator=generator), cos[5:], sin[5:], cache)


def output(checkpoint: Checkpoint, network: torch.nn.Module) -> torch.Tensor:
    if isinstance(network, Transformer):
        return transformer_output(network, checkpoint)
    assert isinstance(network, TextEncoder)
    return encoder_output(network, checkpoint.text_encoder.hidden_size, checkpoint.text_encoder.head_dim)


@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
@pytest.mark.parametrize("configuration", ["narrow", "odd"])  # both encoders have grouped heads
def test_equalising_changes_no_bit(
    with_outliers: Callable[[str], tuple[Path, Path]], name: str, configuration: str
) -> None:
    checkpoint = Checkpoint.open(with_outliers(configuration)[1])
    network = load_network(checkpoint, name)
    expected = output(checkpoint, network)
    component = checkpoint.components[name]
    prefix = component.layout.prefix
    state = network.state_dict()
    for pair in quantised_network(checkpoint, name, PER_TOKEN).pairs:
        first, second = (component.tensors[linear + WEIGHT] for linear in (pair.first, pair.second))
        scales = EqualisedPair(pair, first, second)
        before, after = (linear.removeprefix(prefix) + WEIGHT for linear in (pair.first, pair.second))
        state[before] = state[before] * scales.row_scales[:, None]
        state[after] = state[after] / scales.column_scales
        assert scales.row_scales.min() < 0.5  # the outliers were seen
    network.load_state_dict(state, assign=True)
    assert torch.equal(output(checkpoint, network), expected)


def test_scales_even_out_rows_and_columns() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, columns = (torch.randn(24, generator=generator).mul(3).exp() for _ in range(2))
    scales = equalising_scales(rows, columns)
    # Powers of two are off by at most sqrt(2) to each side, on each of the two.
    ratio = rows * scales / (columns / scales)
    assert ratio.max() <= 2.001
    assert ratio.min() >= 0.4999
    assert torch.equal(scales.log2(), scales.log2().round())


def test_heads_share_the_scales_of_their_values() -> None:
    scales = torch.arange(1.0, 7)  # two groups of three channels
    assert for_heads(scales, 2, 12).tolist() == [1, 2, 3, 1, 2, 3, 4, 5, 6, 4, 5, 6]
    assert for_heads(scales, 1, 6).tolist() == scales.tolist()
    columns = torch.tensor([3.0, 0, 0, 4, 0, 0, 0, 0, 1, 0, 0, 0])
    assert shared_by_heads(columns, 2, 6).tolist() == [5, 0, 0, 0, 0, 1]


def test_a_channel_that_is_never_used_keeps_its_scale() -> None:
    assert equalising_scales(torch.tensor([0.0, 1, 4]), torch.tensor([1.0, 0, 64])).tolist() == [1, 1, 4]


@pytest.mark.parametrize("name", ["transformer", "text_encoder"])
def test_planted_outliers_change_nothing_and_ruin_plain_w8a8(
    with_outliers: Callable[[str], tuple[Path, Path]], name: str
) -> None:
    plain, planted = map(Checkpoint.open, with_outliers("narrow"))
    expected = output(plain, load_network(plain, name))
    network = load_network(planted, name)
    torch.testing.assert_close(output(planted, network), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    prefix = planted.components[name].layout.prefix
    names = [linear.removeprefix(prefix) for linear in quantised_network(planted, name, PER_TOKEN).layers]
    quantise_naively(network, names, lambda: output(planted, network))
    cosine = torch.nn.functional.cosine_similarity(output(planted, network).flatten(), expected.flatten(), dim=0)
    assert cosine < 0.9
