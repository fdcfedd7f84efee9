"""A build whose builder writes a few bytes: its request, its GPU and its jobs."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.cuda.driver import DeviceInfo
from qwen_image_engine.engines.tensorrt.build.job import BuildJob, BuildOptions, BuildResult
from qwen_image_engine.engines.tensorrt.build.launch import Watch
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.tools.build.build import build_bundle
from qwen_image_engine.runtime.tools.build.shapes import BuildShapes

SHAPES = BuildShapes(sizes=((512, 512), (1024, 1024)))
GPU = DeviceInfo("NVIDIA H100 80GB HBM3", "9.0", 13000, total_bytes=80 << 30, free_bytes=79 << 30)
COMPONENTS = ("text_encoder", "vision", "prefix", "prefix_image", "step", "vae_encoder", "vae_decoder_mid")

NO_TENSORS = struct.pack("<Q", 92) + b"{}".ljust(92)
"""A weight file of 100 bytes."""


class FakeBuild:
    """Builds plans that are their jobs as JSON."""

    def __init__(self, fails: str | None = None, error: BaseException | None = None) -> None:
        self.jobs: list[BuildJob] = []
        self.fails, self.error, self.scratch = fails, error, 1000
        self.warnings: tuple[str, ...] = ()

    def __call__(self, job: BuildJob, watch: Watch) -> BuildResult:
        self.jobs.append(job)
        plan = Path(job.plan)
        plan.write_text(json.dumps(job.to_json()), encoding="utf-8")
        if job.component == self.fails and self.error is not None:
            raise self.error
        Path(job.layers).write_text('{"Layers": []}', encoding="utf-8")
        watch("building")
        entry = describe_file(plan)
        scratch = tuple(self.scratch * (index + 1) for index in range(len(job.profiles)))
        return BuildResult(entry.bytes, entry.sha256, 2, job.promise.fp8_products, 0, scratch, self.warnings)

    @property
    def built(self) -> list[str]:
        return [job.component for job in self.jobs]


def build(bundle: Path, run: FakeBuild, shapes: BuildShapes = SHAPES, gpu: DeviceInfo = GPU, **changes: Any) -> Any:
    options = BuildOptions(**{name: changes.pop(name) for name in [*changes] if name in BuildOptions.__annotations__})
    return build_bundle(bundle, shapes, options, run=run, **{"device": lambda: gpu, **changes})
