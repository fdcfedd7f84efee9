"""Rows of times: every contender of the prefix and the step at every size, until the time is up."""

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

RECOMPILATIONS = 64
"""Limit of recompilations of one function: each size, each contender and the prefix need one. torch's limit is 8."""

READY_SECONDS = 15.0
"""Estimated time of a row whose contender is already built [s]."""

Row = dict[str, Any]
Rows = Iterator[Row]


@dataclass(frozen=True)
class Way:
    """A contender: a way of running the step.

    Attributes:
        name: name in the rows.
        prepare: function that prepares the contender for a case and returns its run.
        seconds: estimated time of one row [s].
        missing: reason why the contender is missing; None if it is available.
        held: memory of a contender outside torch, whose runs wait for the device; None if torch allocates its memory.
        is_ready: function that returns whether the part that takes most of `seconds` is already done.
        close: function that frees the contender's memory.
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
        """Estimated seconds of the next row."""
        return min(READY_SECONDS, self.seconds) if self.is_ready() else self.seconds


class Budget:
    """The time budget of the benchmark."""

    def __init__(self, seconds: float) -> None:
        self._end = perf_counter() + seconds

    @property
    def left(self) -> float:
        return self._end - perf_counter()

    def refuses(self, seconds: float) -> str | None:
        """Return the reason to skip a part of `seconds`. None if enough time is left."""
        if seconds <= self.left:
            return None
        return f"left out: it may take {seconds:.0f} s, and {max(0.0, self.left):.0f} s of the budget are left"

    def watch(self, component: str) -> Callable[[str], None]:
        """Return a progress callback for a build. It raises TimeoutError when the time is up."""

        def told(words: str) -> None:
            if self.left < 0:
                raise TimeoutError(f"the time was up while {component} was built ({words})")

        return told


class Once:
    """A value that is made at first use. If making it fails, the next size does not try again."""

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
        """Close the value, if it was made."""
        if self.made is not None:
            self.made.close()
            self.made = None


def guarded(facts: Row, rows: Callable[[], Iterable[Row]], missing: str | None = None) -> Rows:
    """Yield rows up to the first failure, which becomes a row of `facts` with the reason. Any error is caught.

    If `missing` gives a reason, yield only the row with this reason.
    """
    if missing is not None:
        yield facts | {"missing": missing}
        return
    try:
        yield from rows()
    except Exception as error:
        yield facts | {"missing": f"failed: {one_line(error)}"}


def eager_way(network: Transformer) -> Way:
    """Return the reference as it is, which the others are compared with."""
    return Way(EAGER, lambda case: eager(network, case), 5)


def torch_ways(network: Transformer, backend: str, seconds: float) -> tuple[list[Way], list[Way]]:
    """Return the reference's contenders: those for every size, and those that take minutes to compile.

    Args:
        network: network to run.
        backend: backend of torch.compile, such as "inductor".
        seconds: estimated time of one compilation of a block [s].
    """
    import torch._dynamo  # takes more than a second, and TensorRT alone does not need it

    torch._dynamo.config.recompile_limit = RECOMPILATIONS
    device = network.img_in.weight.device
    fast, whole = compiled_blocks(network, {"backend": backend}), compiled_step(network, {"backend": backend})
    quick = [
        eager_way(network),
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
    """Steps of one network at several sizes. Velocities are compared with the first contender's."""

    def __init__(self, network: Transformer, sides: Sequence[int], prefix: int, budget: Budget) -> None:
        self.network, self.sides, self.prefix, self.budget = network, sides, prefix, budget
        self.states = prefix_inputs(network, prefix)
        self.ceilings: dict[int, float] = {}
        """Ceiling by side [10^12 operations a second]."""
        self._cases: dict[int, Case] = {}
        self._expected: dict[int, torch.Tensor] = {}

    @property
    def device(self) -> torch.device:
        return self.network.img_in.weight.device

    @property
    def top(self) -> float | None:
        """Highest ceiling [10^12 operations a second; None if none was measured]."""
        return max(self.ceilings.values(), default=None)

    def ceiling_rows(self) -> Rows:
        """Yield the ceiling of each size. This creates its inputs too, before any memory is measured."""
        for side in self.sides:
            yield from guarded({"pixels": 16 * side}, lambda side=side: [self._ceiling(side)])

    def rows(self, ways: Sequence[Way]) -> Rows:
        """Yield a row for each size and contender."""
        for side, way in ((side, way) for side in self.sides for way in ways):
            row: Row = {"pixels": 16 * side, "tokens": side**2, "prefix": self.prefix, "way": way.name}
            missing = way.missing or self.budget.refuses(way.needed_seconds)
            yield from guarded(row, lambda row=row, side=side, way=way: [row | self._timed(way, side)], missing)

    def profile(self, way: Way, side: int) -> Row:
        """Return a profile of one step by kind of kernel."""
        return {"way": way.name, "pixels": 16 * side, **profile_step(way.prepare(self.case(side)), self.device)}

    def _ceiling(self, side: int) -> Row:
        self.case(side)
        dtype = self.network.img_in.weight.dtype
        self.ceilings[side], milliseconds = ceiling(self.network.config, side**2, self.device, dtype)
        return {"pixels": 16 * side, "tflop_per_s": self.ceilings[side], "linears_ms": milliseconds}

    def case(self, side: int) -> Case:
        """Return the case of a size, created once."""
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
    """Yield the row of the prefix pass in compiled blocks as one CUDA graph, estimated to take `seconds`."""
    network, device = steps.network, steps.device
    row: Row = {"prefix": steps.prefix, "way": COMPILED}

    def timed() -> Iterator[Row]:
        fast = compiled_blocks(network, {"backend": backend})
        reset_peak(device)
        times = measure(graphed(lambda: fast.prefix(*steps.states), device), device)
        yield row | {"peak_bytes": peak_bytes(device)} | figures(times, _prefix_flop(steps), steps.top)

    return guarded(row, timed, steps.budget.refuses(seconds))


def engine_prefix_rows(steps: Steps, name: str, engine: Once, missing: str | None, seconds: float) -> Rows:
    """Yield the row of the prefix pass in an engine, which is estimated to take `seconds` to make.

    Keys and values stay on the device.
    """
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
    """Return the row of the prefix pass in eager mode. The pass runs once a prompt."""
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
