"""The operations of a pass of the transformer, and the speed of this device on matrix products of its sizes."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from time import perf_counter

import torch

from qwen_image_engine.reference.checkpoint.config import TransformerConfig

ROUNDS = 20

EVENTS = "CUDA's events"
CLOCK = "the clock of the host, copies of inputs and outputs in it"


@dataclass(frozen=True)
class Times:
    """The milliseconds of the first run and of steady runs.

    The first run warms up, and compiles if preparing the contender did not.
    """

    first_ms: float
    rounds_ms: tuple[float, ...]
    timed_by: str = CLOCK

    @property
    def median_ms(self) -> float:
        return sorted(self.rounds_ms)[len(self.rounds_ms) // 2]

    @property
    def p90_ms(self) -> float:
        return p90(self.rounds_ms)


def p90(values: Sequence[float]) -> float:
    """Return the least value that nine tenths of the values do not exceed."""
    return sorted(values)[math.ceil(0.9 * len(values)) - 1]


def step_flop(config: TransformerConfig, tokens: int, prefix: int) -> float:
    """Return the floating-point operations of one cached step of one image. A product and a sum count as two.

    With N target tokens, P tokens of prefix, width C, the feed-forward's width M and L layers:

    * linears of a token in a layer, q, k, v and out (C x C) and three of C x M: 2 (4 C^2 + 3 C M);
    * attention in a layer, q k^T and its product with v over P + N keys: 4 N (P + N) C;
    * img_in and proj_out: 2 N C (C_in + C_out);
    * time embedding, modulation and norm_out, of one token: 2 (256 C + C^2 + 4 C^2 + C^2).

    Norms, gates and rotations are left out: they are a thousandth of the sum.
    """
    c, m = config.hidden_size, config.hidden_size * config.mlp_ratio
    layer = 2 * tokens * (4 * c * c + 3 * c * m) + 4 * tokens * (prefix + tokens) * c
    edges = 2 * tokens * c * (config.in_channels + config.out_channels)
    return float(config.num_layers * layer + edges + 2 * (256 * c + 6 * c * c))


def prefix_flop(config: TransformerConfig, prefix: int) -> float:
    """Return the floating-point operations of the prefix pass.

    The pass is causal, so a token attends to half of the others on average. The text's two linears come first. The last
    layer needs only keys and values. The reference computes the rest of this layer too, which does not count.
    """
    c, m = config.hidden_size, config.hidden_size * config.mlp_ratio
    layer = 2 * prefix * (4 * c * c + 3 * c * m) + 2 * prefix * (prefix + 1) * c
    text = 2 * prefix * (config.context_in_dim * c + c * c)
    time = 2 * (256 * c + 5 * c * c)
    return float((config.num_layers - 1) * layer + 2 * prefix * 2 * c * c + text + time)


def measure(run: Callable[[], object], device: torch.device, in_torch: bool = True, rounds: int = ROUNDS) -> Times:
    """Time a warm-up run by the clock, then `rounds` runs by CUDA's events, or by the clock on a CPU.

    An engine outside torch (`in_torch` false) works in a stream of its own and waits for it. Events in torch's stream
    would enclose only this wait, so such an engine is timed by the clock as well.
    """
    began = perf_counter()
    run()
    synchronise(device)
    first = 1000 * (perf_counter() - began)
    if device.type != "cuda" or not in_torch:
        return Times(first, tuple(_by_clock(run, device) for _ in range(rounds)))
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(rounds)]
    for began_at, ended_at in events:
        began_at.record()
        run()
        ended_at.record()
    torch.cuda.synchronize()
    return Times(first, tuple(began_at.elapsed_time(ended_at) for began_at, ended_at in events), EVENTS)


def ceiling(
    config: TransformerConfig, tokens: int, device: torch.device, dtype: torch.dtype, rounds: int = 5
) -> tuple[float, float]:
    """Time only the linears of a step, one after the other, on `tokens` tokens.

    All layers share one set of weights. There are as many products as in a step, so that the clocks are the same.

    Returns:
        10^12 operations a second, and milliseconds.

    """
    c, m = config.hidden_size, config.hidden_size * config.mlp_ratio
    shapes = [(c, c)] * 4 + [(c, m), (c, m), (m, c)]
    weights = [torch.randn(outputs, inputs, device=device, dtype=dtype) for inputs, outputs in shapes]
    rows = {width: torch.randn(tokens, width, device=device, dtype=dtype) for width in {c, m}}

    def products() -> None:
        for _ in range(config.num_layers):
            for weight in weights:
                torch.nn.functional.linear(rows[weight.shape[1]], weight)

    flop = config.num_layers * sum(2.0 * tokens * inputs * outputs for inputs, outputs in shapes)
    milliseconds = measure(products, device, rounds=rounds).median_ms
    return flop / milliseconds / 1e9, milliseconds


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _by_clock(run: Callable[[], object], device: torch.device) -> float:
    began = perf_counter()
    run()
    synchronise(device)
    return 1000 * (perf_counter() - began)


def relative_l2(found: Iterable[torch.Tensor], expected: Iterable[torch.Tensor]) -> tuple[float, float]:
    """Return the worst relative L2 and cosine over pairs of tensors, in float64 on their device."""
    pairs = [(a.double().flatten(), b.double().flatten()) for a, b in zip(found, expected, strict=True)]
    errors = [float((a - b).norm() / b.norm()) for a, b in pairs]
    cosines = [float(a @ b / (a.norm() * b.norm())) for a, b in pairs]
    return max(errors), min(cosines)
