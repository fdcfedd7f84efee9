"""Rows of times: every way of running the prefix and the step at every size, until the time is up."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from benchmarks.gpu.memory import Held, peak_bytes, reset_peak
from benchmarks.gpu.network import Case, Run, compiled_blocks, compiled_step, eager, graphed, make_case, prefix_inputs
from benchmarks.gpu.profile import profile_step
from benchmarks.gpu.work import Times, ceiling, measure, prefix_flop, relative_l2, step_flop
from qwen_image_engine.reference.networks.transformer import Transformer

EAGER = "torch eager"
COMPILED = "torch.compile of the blocks, one CUDA graph"
COMPILED_STEP = "torch.compile of the step, one CUDA graph"

READY_SECONDS = 15.0
"""Of a row whose way is built already."""

Row = dict[str, Any]
Rows = Iterator[Row]


@dataclass(frozen=True)
class Way:
    """A way of running the step.

    Attributes:
        name: in the rows.
        prepare: makes it ready for a case.
        seconds: that one row may take.
        missing: why it is not there, None where it is.
        held: memory of a way that is not torch's, whose runs wait for the device; None where torch allocates it.
        is_ready: whether what takes most of those seconds is done already.
        close: frees what it holds.
    """

    name: str
    prepare: Callable[[Case], Run]
    seconds: float
    missing: str | None = None
    held: Held | None = None
    is_ready: Callable[[], bool] = lambda: False
    close: Callable[[], None] = lambda: None

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

    def watch(self, component: str) -> Callable[[str], None]:
        """What is told how a build goes on, and ends it with a TimeoutError when the time is up."""

        def told(words: str) -> None:
            if self.left < 0:
                raise TimeoutError(f"the time was up while {component} was built ({words})")

        return told


class Once:
    """Makes something when it is first asked for; what failed is not tried again at the next size."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make, self._failure = make, ""
        self.made: Any = None

    def __call__(self) -> Any:
        if self._failure:
            raise RuntimeError(f"as before: {self._failure}")
        if self.made is None:
            try:
                self.made = self._make()
            except Exception as error:
                self._failure = one_line(error)
                raise
        return self.made

    def close(self) -> None:
        """Close what was made."""
        if self.made is not None:
            self.made.close()
            self.made = None


def guarded(facts: Row, rows: Callable[[], Iterable[Row]], missing: str | None = None) -> Rows:
    """Rows up to the first failure, which is a row of `facts` too: whatever it is, the other rows are worth having.

    Where `missing` says why there can be none, that is the only row.
    """
    if missing is not None:
        yield facts | {"missing": missing}
        return
    try:
        yield from rows()
    except Exception as error:
        yield facts | {"missing": f"failed: {one_line(error)}"}


def torch_ways(network: Transformer, backend: str, seconds: float) -> tuple[list[Way], list[Way]]:
    """Of the reference: what every size is run in, and what takes minutes to compile.

    `backend` compiles ("inductor"), and one compilation of a block may take `seconds`.
    """
    device = network.img_in.weight.device
    fast, whole = compiled_blocks(network, {"backend": backend}), compiled_step(network, {"backend": backend})
    quick = [
        Way(EAGER, lambda case: eager(network, case), 5),
        Way("torch eager, one CUDA graph", lambda case: graphed(eager(network, case), device), 5),
        Way(COMPILED, lambda case: graphed(eager(fast, case), device), seconds),
        Way(COMPILED_STEP, lambda case: graphed(whole(case), device), 2 * seconds),
    ]
    if device.type != "cuda":
        return quick, []
    tuned = compiled_blocks(network, {"mode": "max-autotune-no-cudagraphs"})
    name = "torch.compile of the blocks, max-autotune, one CUDA graph"
    return quick, [Way(name, lambda case: graphed(eager(tuned, case), device), 3 * seconds)]


class Steps:
    """Steps of one network at some sizes; velocities are compared with that of the first way that ran."""

    def __init__(self, network: Transformer, sides: Sequence[int], prefix: int, budget: Budget) -> None:
        self.network, self.sides, self.prefix, self.budget = network, sides, prefix, budget
        self.states = prefix_inputs(network, prefix)
        self.ceilings: dict[int, float] = {}
        """10^12 operations a second by side."""
        self._cases: dict[int, Case] = {}
        self._expected: dict[int, torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.network.img_in.weight.device

    @property
    def top(self) -> float | None:
        """The highest ceiling, where one was measured."""
        return max(self.ceilings.values(), default=None)

    def ceiling_rows(self) -> Rows:
        """The ceiling of each size; its inputs are made here too, before anybody's memory is looked at."""
        for side in self.sides:
            yield from guarded({"pixels": 16 * side}, lambda side=side: [self._ceiling(side)])

    def rows(self, ways: Sequence[Way]) -> Rows:
        """A row for each size and way."""
        for side, way in ((side, way) for side in self.sides for way in ways):
            row: Row = {"pixels": 16 * side, "tokens": side**2, "prefix": self.prefix, "way": way.name}
            missing = way.missing or self.budget.refuses(way.needed_seconds)
            yield from guarded(row, lambda row=row, side=side, way=way: [row | self._timed(way, side)], missing)

    def profile(self, way: Way, side: int) -> Row:
        """One step by kind of kernel."""
        return {"way": way.name, "pixels": 16 * side, **profile_step(way.prepare(self.case(side)), self.device)}

    def _ceiling(self, side: int) -> Row:
        self.case(side)
        dtype = self.network.img_in.weight.dtype
        self.ceilings[side], milliseconds = ceiling(self.network.config, side**2, self.device, dtype)
        return {"pixels": 16 * side, "tflop_per_s": self.ceilings[side], "linears_ms": milliseconds}

    def case(self, side: int) -> Case:
        """That of a size, made once."""
        if side not in self._cases:
            self._cases[side] = make_case(self.network, side, self.states)
        return self._cases[side]

    def _timed(self, way: Way, side: int) -> Row:
        case = self.case(side)
        reset_peak(self.device)
        began = perf_counter()
        with _sampled(way.held):
            run = way.prepare(case)
        ready = perf_counter() - began
        times = measure(run, self.device, way.held is None)
        with _sampled(way.held):
            found = run().clone()
        distance, _ = relative_l2([found], [self._expected.setdefault(side, found)])
        return {
            **figures(times, step_flop(self.network.config, side**2, self.prefix), self.ceilings.get(side)),
            "ready_s": ready,
            "peak_bytes": peak_bytes(self.device) if way.held is None else way.held.most,
            "relative_l2_to_the_first": distance,
        }


def _sampled(held: Held | None) -> Any:
    return nullcontext() if held is None else held.sampled()


def compiled_prefix_rows(steps: Steps, backend: str, seconds: float) -> Rows:
    """The same pass as `prefix_row`, in blocks that are compiled and as one CUDA graph; `seconds` it may take."""
    network, device = steps.network, steps.device
    row: Row = {"prefix": steps.prefix, "way": COMPILED}

    def timed() -> Iterator[Row]:
        fast = compiled_blocks(network, {"backend": backend})
        reset_peak(device)
        times = measure(graphed(lambda: fast.prefix(*steps.states), device), device)
        yield row | {"peak_bytes": peak_bytes(device)} | figures(times, _prefix_flop(steps), steps.top)

    return guarded(row, timed, steps.budget.refuses(seconds))


def engine_prefix_rows(steps: Steps, name: str, engine: Once, missing: str | None, seconds: float) -> Rows:
    """The same pass in an engine, whose keys and values stay on the device; `seconds` it may take to make it."""
    row: Row = {"prefix": steps.prefix, "way": name}
    missing = missing or (None if engine.made is not None else steps.budget.refuses(seconds))

    def timed() -> Iterator[Row]:
        names = ("text_states", "cos", "sin")
        inputs = {name: tensor.float().cpu().numpy() for name, tensor in zip(names, steps.states, strict=True)}
        reset_peak(steps.device)
        held = Held(steps.device)
        with held.sampled():
            running = engine()
        times = measure(lambda: running.run(inputs), steps.device, in_torch=False)
        with held.sampled():
            running.run(inputs)
        yield row | figures(times, _prefix_flop(steps), steps.top) | {"peak_bytes": held.most}

    return guarded(row, timed, missing)


def _prefix_flop(steps: Steps) -> float:
    return prefix_flop(steps.network.config, steps.prefix)


def prefix_row(steps: Steps) -> Row:
    """The prefix's pass, eager: it runs once a prompt."""
    network, device = steps.network, steps.device
    reset_peak(device)
    times = measure(lambda: network.prefix(*steps.states), device)
    row = {"prefix": steps.prefix, "way": EAGER, "peak_bytes": peak_bytes(device)}
    return row | figures(times, _prefix_flop(steps), steps.top)


def figures(times: Times, flop: float, top: float | None) -> Row:
    reached = flop / times.median_ms / 1e9
    return {
        "timed_by": times.timed_by,
        "first_ms": times.first_ms,
        "median_ms": times.median_ms,
        "p90_ms": times.p90_ms,
        "rounds_ms": list(times.rounds_ms),
        "tflop": flop / 1e12,
        "tflop_per_s": reached,
        "of_ceiling": None if top is None else reached / top,
    }


def one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
