"""The step and the prefix as TensorRT engines, exported, built here, and run by the project's own runtime.

No TensorRT has run this yet.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common.synthetic_scales import SYNTHETIC, synthetic_calibration
from benchmarks.gpu.loop import loop_row
from benchmarks.gpu.memory import Held
from benchmarks.gpu.network import Case, Run
from benchmarks.gpu.peers import array_inputs, missing_engine, written_checkpoint
from benchmarks.gpu.timings import Budget, Once, Row, Rows, Steps, Way, engine_prefix_rows, guarded
from qwen_image_engine.engines.cuda.driver import device_info
from qwen_image_engine.engines.plans.entry import PlanEntry, Profile
from qwen_image_engine.engines.plans.profile import Range
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, BuildResult
from qwen_image_engine.engines.tensorrt.build.launch import Watch, run_build
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.networks.transformer import Transformer

if TYPE_CHECKING:  # what needs more packages than torch does is imported where it is used
    from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry
    from qwen_image_engine.runtime.tools.build.shapes import BuildShapes

PRECISIONS = ("bf16", "fp8", "int8")
BUILD_SECONDS = 240.0
"""Estimated time to export and build one component [s]."""

LOOP_SECONDS = 30.0
"""Estimated time of the loop row, four times eight steps [s]."""

BuildOne = Callable[[BuildJob, Watch], BuildResult]


class TensorRt:
    """The engines of one precision, exported and built at first use."""

    def __init__(
        self,
        network: Transformer,
        values: Mapping[str, Any],
        work: Path,
        precision: str,
        shapes: Callable[[], BuildShapes],
        budget: Budget,
    ) -> None:
        self.network, self.values, self.work = network, values, work
        self.precision, self.shapes, self.budget = precision, shapes, budget
        self.step, self.prefix = (
            Once(lambda component=component: self._load(component, *self.build(component)))
            for component in ("step", "prefix")
        )

    @property
    def name(self) -> str:
        return f"TensorRT 11 {self.precision}" + ("" if self.precision == "bf16" else f", {SYNTHETIC}")

    def __call__(self, case: Case) -> Run:
        inputs, device, engine = array_inputs(case), case.latents.device, self.step()

        def step() -> Tensor:
            return torch.from_numpy(np.asarray(engine.run(inputs)["velocity"])).to(device)

        return step

    @property
    def way(self) -> Way:
        return Way(
            self.name,
            self,
            BUILD_SECONDS,
            missing_engine("tensorrt"),
            held=Held(self.network.img_in.weight.device),
            is_ready=lambda: self.step.made is not None,
            close=self.close,
        )

    def prefix_rows(self, steps: Steps) -> Rows:
        """Yield the row of the prefix pass."""
        return engine_prefix_rows(steps, self.name, self.prefix, missing_engine("tensorrt"), BUILD_SECONDS)

    def loop_rows(self, steps: Steps) -> Rows:
        """Yield a row of the device loop for each size, if the step is built."""
        for side in steps.sides if self.step.made is not None else ():
            row: Row = {"pixels": 16 * side, "way": self.name}
            yield from guarded(
                row,
                lambda row=row, side=side: [row | loop_row(self.step(), array_inputs(steps.case(side)))],
                self.budget.refuses(LOOP_SECONDS),
            )

    def close(self) -> None:
        """Free the engines, and delete graphs and plans: the disk has no room for all precisions at full size."""
        self.step.close()
        self.prefix.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @cached_property
    def exported(self) -> Mapping[str, ComponentEntry]:
        """The exported graphs of prefix and step, in a folder of their own."""
        from qwen_image_engine.calibration.quantise.network import quantised_networks
        from qwen_image_engine.export.bundle.network_folder import write_network
        from qwen_image_engine.export.targets import choose_target

        checkpoint = Checkpoint.open(written_checkpoint(self.network, self.values, self.work))
        chosen = choose_target("tensorrt", self.precision)
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
        """Build a component and return its entry, its plan, the plan's profiles, and the result of the build.

        Raises:
            TimeoutError: the budget runs out before the build ends.
        """
        from qwen_image_engine.runtime.tools.build.request import promise
        from qwen_image_engine.runtime.tools.build.shapes import Template, build_profiles

        entry = self.exported[component]
        profiles = build_profiles(entry.contract, self.shapes(), Template(0, ((0,),)), 0)
        plan = self.folder / f"{component}.plan"

        job = BuildJob(
            component=component,
            builder="tensorrt",
            compute_capabilities=(),
            model=str(self.folder / entry.model),
            plan=str(plan),
            timing_cache=str(self.work / "kernels.timing"),
            profiles=profiles,
            options=BuildOptions(),
            promise=promise(entry),
            softmax_scale=None,
            layers=str(plan.with_suffix(".layers.json")),
        )
        return entry, plan, profiles, run(job, self.budget.watch(component))

    def _load(self, component: str, entry: ComponentEntry, plan: Path, profiles: Any, built: BuildResult) -> Any:
        from qwen_image_engine.engines.tensorrt.engine import TensorRtEngine
        from qwen_image_engine.engines.tensorrt.load import PlanSource

        session, facts = _session(), device_info()
        made = PlanEntry(
            file=plan.name,
            key="",
            builder="tensorrt",
            version=session.version,
            compute_capabilities=(facts.compute_capability,),
            gpu=facts.name,
            driver=facts.driver,
            profiles=profiles,
            scratch_bytes=built.scratch_bytes,
        )
        scratch = max(built.scratch_bytes, default=0)
        source = PlanSource(plan, made, built.bytes, scratch, self.folder / entry.model, "sh benchmarks/gpu.sh")
        return TensorRtEngine(session, source, entry.contract)


@cache
def _session() -> Any:
    from qwen_image_engine.engines.tensorrt.session import TensorRtSession

    return TensorRtSession.open(device_info())


def shapes_of(sides: list[int], prefix: int) -> BuildShapes:
    """Return the build shapes of square pictures, one at a time, after up to `prefix` tokens."""
    from qwen_image_engine.runtime.tools.build.shapes import BuildShapes

    sizes = tuple((16 * side, 16 * side) for side in sides)
    return BuildShapes(sizes, Range(1, prefix, prefix), Range.of(0))
