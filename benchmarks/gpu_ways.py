"""Rows of times: every way of running the prefix and the step at every size, until the time is up."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from gpu_network import Case, Run, compiled_blocks, compiled_step, eager, graphed, make_case, prefix_inputs
from gpu_work import Times, ceiling, measure, peak_bytes, prefix_flop, relative_l2, reset_peak, step_flop, used_bytes

from qwen_image_engine.reference.transformer import Transformer

EAGER = "torch eager"
COMPILED = "torch.compile of the blocks, one CUDA graph"

READY_SECONDS = 15.0
"""Of a row whose way is built already."""

Rows = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Way:
    """A way of running the step.

    Attributes:
        name: in the rows.
        prepare: makes it ready for a case.
        seconds: that one row may take.
        missing: why it is not there, None where it is.
        is_ready: whether what takes most of those seconds is done already.
        in_torch: whether torch allocates its memory; of another, what all of the device holds is its peak.
    """

    name: str
    prepare: Callable[[Case], Run]
    seconds: float
    missing: str | None = None
    in_torch: bool = True
    is_ready: Callable[[], bool] = lambda: False

    @property
    def needed_seconds(self) -> float:
        """Of the next row."""
        return min(READY_SECONDS, self.seconds) if self.is_ready() else self.seconds


class Budget:
    """The seconds that are left."""

    def __init__(self, seconds: float) -> None:
        self._end = perf_counter() + seconds

    @property
    def left(self) -> float:
        return self._end - perf_counter()

    def refuses(self, seconds: float) -> str | None:
        """Why something of that many seconds is not begun, None where it is."""
        if seconds <= self.left:
            return None
        return f"left out: it may take {seconds:.0f} s, and {max(0.0, self.left):.0f} s of the budget are left"


def torch_ways(network: Transformer, backend: str, seconds: float) -> tuple[list[Way], list[Way]]:
    """Of the reference: what every size is run in, and what takes minutes to compile.

    `backend` compiles ("inductor"), and one compilation of a block may take `seconds`.
    """
    device = network.img_in.weight.device
    fast = compiled_blocks(network, {"backend": backend})
    quick = [
        Way(EAGER, lambda case: eager(network, case), 5),
        Way("torch eager, one CUDA graph", lambda case: graphed(eager(network, case), device), 5),
        Way(COMPILED, lambda case: graphed(eager(fast, case), device), seconds),
    ]
    if device.type != "cuda":
        return quick, []
    tuned = compiled_blocks(network, {"mode": "max-autotune-no-cudagraphs"})
    slow = [
        Way(
            "torch.compile of the blocks, max-autotune, one CUDA graph",
            lambda case: graphed(eager(tuned, case), device),
            2 * seconds,
        ),
        Way(
            "torch.compile of the step, reduce-overhead",
            lambda case: compiled_step(network, case, {"mode": "reduce-overhead"}),
            4 * seconds,
        ),
    ]
    return quick, slow


def step_rows(
    network: Transformer,
    phases: Sequence[Sequence[Way]],
    sides: Sequence[int],
    prefix: int,
    budget: Budget,
    ceilings: dict[int, float],
) -> Rows:
    """A row for each size and way, all sizes of one phase before the next.

    Velocities are compared with that of the first way. `ceilings` takes the ceiling of each size, in 10^12 operations
    a second.
    """
    weight, states = network.img_in.weight, prefix_inputs(network, prefix)
    cases = {side: make_case(network, side, states) for side in sides}
    expected: dict[int, torch.Tensor] = {}
    for side in sides:
        ceilings[side] = ceiling(network.config, side**2, weight.device, weight.dtype)
    for side, way in ((side, way) for ways in phases for side in sides for way in ways):
        row: dict[str, Any] = {"pixels": 16 * side, "tokens": side**2, "prefix": prefix, "way": way.name}
        missing = way.missing or budget.refuses(way.needed_seconds)
        if missing is not None:
            yield row | {"missing": missing}
            continue
        reset_peak(weight.device)
        began = perf_counter()
        try:
            run = way.prepare(cases[side])
            ready = perf_counter() - began
            times = measure(run, weight.device)
            found = run().clone()
        except Exception as error:  # of any compiler: the other rows are worth having all the same
            yield row | {"missing": f"failed: {one_line(error)}"}
            continue
        distance, _ = relative_l2([found], [expected.setdefault(side, found)])
        peak = peak_bytes if way.in_torch else used_bytes
        facts = {"ready_s": ready, "peak_bytes": peak(weight.device), "relative_l2_to_the_first": distance}
        flop = step_flop(network.config, side**2, prefix)
        yield row | figures(times, flop, ceilings[side]) | facts
        del run, found


def prefix_row(network: Transformer, prefix: int, top: float) -> dict[str, Any]:
    """The prefix's pass, eager: it runs once a prompt."""
    weight, states = network.img_in.weight, prefix_inputs(network, prefix)
    reset_peak(weight.device)
    times = measure(lambda: network.prefix(*states), weight.device)
    row = {"prefix": prefix, "way": EAGER, "peak_bytes": peak_bytes(weight.device)}
    return row | figures(times, prefix_flop(network.config, prefix), top)


def figures(times: Times, flop: float, top: float) -> dict[str, Any]:
    reached = flop / times.median_ms / 1e9
    return {
        "first_ms": times.first_ms,
        "median_ms": times.median_ms,
        "p90_ms": times.p90_ms,
        "rounds_ms": list(times.rounds_ms),
        "tflop": flop / 1e12,
        "tflop_per_s": reached,
        "of_ceiling": reached / top,
    }


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
