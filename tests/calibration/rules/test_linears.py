"""Quantised linears of the released transformer: the shares that docs/quantisation.md gives."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common.released_configs import released_configs
from qwen_image_engine.calibration.rules.linears import LINEARS
from qwen_image_engine.reference.checkpoint.config import TransformerConfig
from qwen_image_engine.reference.networks.transformer import TIME_FEATURES, Transformer

PREFIX = 200


@pytest.fixture(scope="module")
def released() -> Transformer:
    """The released transformer, without values."""
    with torch.device("meta"):
        return Transformer(TransformerConfig.from_json(released_configs()["transformer"], "released"))


def is_quantised(name: str) -> bool:
    return name.endswith(tuple(f".{linear}" for linear in LINEARS["transformer"].names))


def test_share_of_the_weights(released: Transformer) -> None:
    sizes = {name.removesuffix(".weight"): parameter.numel() for name, parameter in released.named_parameters()}
    quantised = sum(size for name, size in sizes.items() if is_quantised(name))
    assert quantised / sum(sizes.values()) == pytest.approx(0.98, abs=0.005)


@pytest.mark.parametrize(("side", "linears", "attention"), [(1024, 0.86, 0.14), (2048, 0.62, 0.38)])
@pytest.mark.slow
def test_share_of_a_steps_arithmetic(released: Transformer, side: int, linears: float, attention: float) -> None:
    tokens, config = (side // 16) ** 2, released.config
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False, depth=None) as counter:
        latents, features = torch.empty(1, tokens, config.in_channels), torch.empty(1, TIME_FEATURES)
        angles = torch.empty(tokens, config.attention_head_dim // 2)
        past = torch.empty(1, PREFIX, config.num_attention_heads, config.attention_head_dim)
        released.step(latents, features, angles, angles, [(past, past)] * config.num_layers)
    counts = counter.get_flop_counts()
    total = counter.get_total_flops()
    quantised = sum(sum(found.values()) for name, found in counts.items() if is_quantised(name))
    assert quantised / total == pytest.approx(linears, abs=0.005)
    assert counts["Global"][torch.ops.aten.bmm] / total == pytest.approx(attention, abs=0.005)
