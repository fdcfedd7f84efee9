"""The step and the prefix as TensorRT engines: exported, built here and run by the project's own runtime.

No TensorRT has run this yet.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_network import Case, Run
from gpu_peers import array_inputs, missing_engine, written_checkpoint
from gpu_ways import Budget, Way, figures, one_line
from gpu_work import measure, prefix_flop, used_bytes
from synthetic_scales import SYNTHETIC, synthetic_calibration
from torch import Tensor

from qwen_image_engine.calibration.quantised_network import quantised_networks
from qwen_image_engine.engines.build_job import BuildJob, BuildOptions, BuildResult
from qwen_image_engine.engines.build_process import Watch, run_build
from qwen_image_engine.engines.cuda_driver import device_facts
from qwen_image_engine.engines.plan_entry import PlanEntry, Profile
from qwen_image_engine.engines.profile import Range
from qwen_image_engine.export.network_folder import write_network
from qwen_image_engine.export.recipe import recipe
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.reference.transformer import Transformer
from qwen_image_engine.runtime.build import promise
from qwen_image_engine.runtime.build_shapes import BuildShapes, Template, build_profiles
from qwen_image_engine.runtime.manifest import ComponentEntry

PRECISIONS = ("bf16", "fp8", "int8")
BUILD_SECONDS = 240.0
"""Export and build of one component; a guess."""

BuildOne = Callable[[BuildJob, Watch], BuildResult]


class TensorRt:
    """One precision's engines, exported and built when they are first asked for, and closed with `kept`."""

    def __init__(
        self,
        network: Transformer,
        values: Mapping[str, Any],
        work: Path,
        kept: ExitStack,
        precision: str,
        shapes: BuildShapes,
        budget: Budget,
    ) -> None:
        self.network, self.values, self.work, self.kept = network, values, work, kept
        self.precision, self.shapes, self.budget = precision, shapes, budget
        self.engines: dict[str, Any] = {}

    @property
    def name(self) -> str:
        return f"TensorRT 11 {self.precision}" + ("" if self.precision == "bf16" else f", {SYNTHETIC}")

    def __call__(self, case: Case) -> Run:
        inputs, device, engine = array_inputs(case), case.latents.device, self.engine("step")

        def step() -> Tensor:
            return torch.from_numpy(np.asarray(engine.run(inputs)["velocity"])).to(device)

        return step

    def prefix(self, states: tuple[Tensor, Tensor, Tensor]) -> Callable[[], object]:
        """The prefix's pass, whose keys and values stay on the device."""
        engine = self.engine("prefix")
        names = ("text_states", "cos", "sin")
        inputs = {name: tensor.float().cpu().numpy() for name, tensor in zip(names, states, strict=True)}
        return lambda: engine.run(inputs)

    def engine(self, component: str) -> Any:
        if component not in self.engines:
            self.engines[component] = self._load(component, *self.build(component))
            self.kept.callback(self.engines[component].close)
        return self.engines[component]

    @cached_property
    def exported(self) -> Mapping[str, ComponentEntry]:
        """Graphs of prefix and step in a folder of their own."""
        checkpoint = Checkpoint.open(written_checkpoint(self.network, self.values, self.work))
        chosen = recipe("tensorrt", self.precision)
        calibration = None if chosen.quantisation is None else synthetic_calibration(self.network)
        quantised = quantised_networks(checkpoint, chosen.quantisation, calibration)["transformer"]
        linked = chosen.quantisation is None and self.network.img_in.weight.dtype == torch.bfloat16
        self.folder.mkdir()
        written = write_network(
            checkpoint,
            ("prefix", "step"),
            chosen,
            quantised,
            "link" if linked else "copy",
            self.folder,
            {},
            lambda what, count: None,
        )
        return written.components

    @property
    def folder(self) -> Path:
        return self.work / f"tensorrt-{self.precision}"

    def build(
        self, component: str, run: BuildOne = run_build
    ) -> tuple[ComponentEntry, Path, tuple[Profile, ...], BuildResult]:
        """The component's entry, its plan, the plan's profiles, and what the build said of it.

        Raises:
            TimeoutError: the time is up.
        """
        entry = self.exported[component]
        profiles = build_profiles(entry.contract, self.shapes, Template(0, ((0,),)), 0)
        plan = self.folder / f"{component}.plan"

        def watch(words: str) -> None:
            if self.budget.left < 0:
                raise TimeoutError(f"the time was up while {component} was built ({words})")

        job = BuildJob(
            component=component,
            model=str(self.folder / entry.model),
            plan=str(plan),
            timing_cache=str(self.work / "kernels.timing"),
            profiles=profiles,
            options=BuildOptions(),
            promise=promise(entry),
            softmax_scale=None,
        )
        return entry, plan, profiles, run(job, watch)

    def _load(self, component: str, entry: ComponentEntry, plan: Path, profiles: Any, built: BuildResult) -> Any:
        from qwen_image_engine.engines.tensorrt_engine import TensorRtEngine
        from qwen_image_engine.engines.tensorrt_load import PlanSource

        session, facts = _session(), device_facts()
        made = PlanEntry(
            file=plan.name,
            key="",
            tensorrt=session.version,
            gpu=facts.name,
            compute_capability=facts.compute_capability,
            driver=facts.driver,
            profiles=profiles,
            scratch_bytes=built.scratch_bytes,
        )
        source = PlanSource(plan, made, built.bytes, self.folder / entry.model, "sh benchmarks/gpu.sh")
        return TensorRtEngine(session, source, entry.contract)


@cache
def _session() -> Any:
    from qwen_image_engine.engines.tensorrt_session import TensorRtSession

    return TensorRtSession.open(device_facts())


def tensorrt_ways(engines: list[TensorRt]) -> list[list[Way]]:
    """A phase for each, so that all sizes of one precision come before another is built."""
    missing = missing_engine("tensorrt")
    return [
        [Way(item.name, item, BUILD_SECONDS, missing, in_torch=False, is_ready=lambda item=item: bool(item.engines))]
        for item in engines
    ]


def prefix_rows(
    engines: list[TensorRt], states: tuple[Tensor, Tensor, Tensor], top: float, budget: Budget
) -> Iterator[dict[str, Any]]:
    """The prefix's pass in each precision."""
    tokens = states[0].shape[1]
    for item in engines:
        row: dict[str, Any] = {"prefix": tokens, "way": item.name}
        missing = missing_engine("tensorrt") or budget.refuses(BUILD_SECONDS)
        if missing is not None:
            yield row | {"missing": missing}
            continue
        try:
            run = item.prefix(states)
            times = measure(run, states[0].device)
        except Exception as error:  # the other rows are worth having all the same
            yield row | {"missing": f"failed: {one_line(error)}"}
            continue
        flop = prefix_flop(item.network.config, tokens)
        yield row | figures(times, flop, top) | {"peak_bytes": used_bytes(states[0].device)}


def shapes_of(sides: list[int], prefix: int) -> BuildShapes:
    """Square pictures, one at a time, behind that many tokens."""
    sizes = tuple((16 * side, 16 * side) for side in sides)
    return BuildShapes(sizes, Range(1, prefix, prefix), Range.of(0))
