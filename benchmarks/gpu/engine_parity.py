"""Parity of engines of the small checkpoint, exported and built here, with the reference in fp32 on the device."""

from pathlib import Path
from typing import Any

import torch

from benchmarks.common.wide_checkpoint import SMALL
from benchmarks.gpu.parity import engine_rows
from benchmarks.gpu.peers import missing_engine
from benchmarks.gpu.timings import Budget, Rows, guarded, one_line
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

CALIBRATED = ("fp8", "int8")
SCALES = "scales of two prompts, 3 steps each, in fp32 on the CPU"

EXPORT_SECONDS = 60.0
"""Estimated time to export one bundle and run its engines [s]."""

BUILD_SECONDS = 100.0
"""Time limit of building the eight engines of one bundle [s]. Only the engines built by then are compared."""


def compared_shapes() -> Any:
    """Return build shapes that include `parity.SIZES`."""
    from qwen_image_engine.engines.plans.profile import Range
    from qwen_image_engine.runtime.tools.build.shapes import BuildShapes

    return BuildShapes(sizes=((256, 256),), references=Range(0, 1, 2), reference_resolution=256)


def engine_parity(
    engine: str, target: str, precisions: tuple[str, ...], device: torch.device, budget: Budget, work: Path
) -> Rows:
    """Yield a row for every component in each precision. Rows of missing results give the reason."""
    for precision in precisions:
        way = f"{engine} {target} {precision}"
        yield from guarded(
            {"way": way},
            lambda way=way, precision=precision: _rows(way, engine, target, precision, device, budget, work),
            missing_engine(engine) or budget.refuses(EXPORT_SECONDS),
        )


def _rows(way: str, engine: str, target: str, precision: str, device: torch.device, budget: Budget, work: Path) -> Rows:
    from qwen_image_engine.export.bundle.bundle import export_bundle

    bundle = work / f"bundle-{target}-{precision}"
    calibration = _calibration(work) if precision in CALIBRATED else None
    manifest = export_bundle(SMALL, bundle, target=target, precision=precision, calibration=calibration)
    names, late = list(manifest.components), None
    if target == "tensorrt":
        names, late = _built(bundle, Budget(min(BUILD_SECONDS, budget.left)))
    scales = {} if calibration is None else {"scales": SCALES}
    for row in engine_rows(Checkpoint.open(SMALL), bundle, way, engine, device, names):
        yield row | scales
    if late is not None:
        yield {"way": way, "missing": late}


def _calibration(work: Path) -> Path:
    """Return the calibration folder of the small checkpoint."""
    from qwen_image_engine.calibration.observe.calibrate import calibrate

    folder, prompts = work / "calibration", ("a red circle on a white background", "two blue squares")
    calibrate(SMALL, folder, prompts, steps=3, sizes=[(64, 64), (96, 32)], seed=5)
    return folder


def _built(bundle: Path, budget: Budget) -> tuple[list[str], str | None]:
    """Build the engines, the transformer's first; return the built components and why others are missing, if any."""
    from qwen_image_engine.engines.tensorrt.build.job import BuildOptions
    from qwen_image_engine.runtime.bundle.manifest import read_manifest
    from qwen_image_engine.runtime.tools.build.build import build_bundle

    late = None
    try:
        for only in (("prefix", "prefix_image", "step"), ()):
            build_bundle(bundle, compared_shapes(), BuildOptions(), only=only, announce=budget.watch)
    except Exception as error:  # what was built before it is compared all the same
        late = f"failed: {one_line(error)}"
    return list(read_manifest(bundle).plans), late
