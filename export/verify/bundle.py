"""The comparison of one bundle with recordings of the reference: components, teacher-forced steps, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.components import EVERY_STEP
from qwen_image_engine.engines.core.device_array import Values
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.tensorrt.package import TENSORRT_RTX, KernelSpecialization
from qwen_image_engine.export.targets import thresholds
from qwen_image_engine.export.thresholds import TEACHER_FORCED, Threshold
from qwen_image_engine.export.verify.cache_codes import CacheCodes
from qwen_image_engine.export.verify.difference import Difference, difference, worst
from qwen_image_engine.export.verify.free_running import DrawnCase, Trajectory, divergence
from qwen_image_engine.export.verify.not_finite import first_not_finite
from qwen_image_engine.export.verify.recording import Call, Recording
from qwen_image_engine.export.verify.result import NotFiniteOutput, Row
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.images.png import png_bytes
from qwen_image_engine.runtime.pipeline import QwenImage


@dataclass(frozen=True)
class BundleRows:
    """The results of comparing one bundle with recordings.

    Attributes:
        rows: rows of every component, then of the teacher-forced steps.
        distances: for each recording, the distance of the bundle's own trajectory from it after each step.
        pictures: pictures that these trajectories end in; empty if not requested.
        not_finite: where values that are not finite come from; None if every output is finite.
    """

    rows: tuple[Row, ...]
    distances: tuple[tuple[float, ...], ...]
    pictures: tuple[DrawnCase, ...] = ()
    not_finite: NotFiniteOutput | None = None


def compare_bundle(
    bundle: Path,
    manifest: Manifest,
    recordings: Sequence[Recording],
    engine: str,
    threads: int | None,
    *,
    pictures: bool = False,
) -> BundleRows:
    """Compare a bundle with recordings.

    The bundle's precision must have thresholds.

    Raises:
        QwenImageError: an engine cannot load a graph, or a run fails; or values that are not finite leave no prompt to
            draw with.
    """
    limits = thresholds(manifest.target, manifest.precision, engine)
    assert limits is not None
    rows = list(_components(Bundle(bundle, manifest), recordings, limits, engine, threads))
    distances, drawn = [], []
    specialization = _specialization(engine)
    with QwenImage.load(
        bundle, engine=engine, memory="sequential", threads=threads, kernel_specialization=specialization
    ) as pipeline:
        for recording in recordings:
            try:
                row, trajectory = _steps(pipeline, recording, limits[TEACHER_FORCED])
            except QwenImageError as error:
                found = first_not_finite(bundle, manifest, rows)
                if found is None:
                    raise
                raise QwenImageError(f"{bundle}: {found}") from error
            rows.append(row)
            distances.append(trajectory.distances)
            if pictures:
                drawn.append(_drawn(pipeline, recording, trajectory))
    return BundleRows(tuple(rows), tuple(distances), tuple(drawn), first_not_finite(bundle, manifest, rows))


def _specialization(engine: str) -> KernelSpecialization | None:
    """Return the choice with which two comparisons are equal: in no run do other kernels serve for a while."""
    return "eager" if engine == TENSORRT_RTX.engine else None


def _components(
    bundle: Bundle,
    recordings: Sequence[Recording],
    thresholds: Mapping[str, Threshold],
    engine: str,
    threads: int | None,
) -> Iterator[Row]:
    """Yield the rows of each component on the reference's inputs, one engine loaded at a time."""
    for name, entry in bundle.manifest.components.items():
        codes = CacheCodes(entry.contract, bundle.manifest)
        with closing(bundle.load_engine(name, engine, threads, _specialization(engine))) as running:
            for recording in recordings:
                calls = recording.calls.get(name, ())
                if calls:
                    runs = tuple(_outputs(call, running.run(codes.inputs(call.inputs)), codes) for call in calls)
                    sigmas = recording.sigmas if name in EVERY_STEP else ()
                    yield Row(name, recording.case.name, runs, thresholds[name], sigmas)


def _outputs(call: Call, found: Mapping[str, Values], codes: CacheCodes) -> Difference:
    return worst(difference(codes.output(name, found[name]), expected) for name, expected in call.outputs.items())


def _steps(pipeline: QwenImage, recording: Recording, threshold: Threshold) -> tuple[Row, Trajectory]:
    """Return the row of teacher-forced steps, and the trajectory of the bundle left to itself.

    The bundle's own encoder, prefix and step run in both. For the row, each step is given the reference's latents.
    """
    case = recording.case
    images = pipeline.read_references(case.references, case.reference_resolution)
    conditioning = pipeline.encode(case.prompt, images)
    velocity = pipeline.denoiser(conditioning, width=case.width, height=case.height)
    runs = tuple(difference(velocity(step.latents, step.sigma), step.velocity) for step in recording.steps)
    row = Row(TEACHER_FORCED, case.name, runs, threshold, recording.sigmas)
    return row, divergence(velocity, recording, recording.steps[0].latents)


def _drawn(pipeline: QwenImage, recording: Recording, trajectory: Trajectory) -> DrawnCase:
    """Return the pictures of reference and bundle, each decoded by its own VAE.

    If the bundle cannot draw a picture, that is a finding, not an error.
    """
    assert recording.picture is not None
    case, reference = recording.case, png_bytes(recording.picture)
    if trajectory.final is None:
        return DrawnCase(case.name, reference, None, "its latents are not finite")
    try:
        (picture,) = pipeline.decode(trajectory.final, case.width, case.height)
    except QwenImageError as error:
        return DrawnCase(case.name, reference, None, str(error))
    return DrawnCase(case.name, reference, png_bytes(picture))
