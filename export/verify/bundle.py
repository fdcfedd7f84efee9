"""The comparison of one bundle with recordings of the reference: components, teacher-forced steps, pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from qwen_image_engine.engines.core.components import EVERY_STEP
from qwen_image_engine.engines.core.device_array import Values
from qwen_image_engine.engines.core.engine import Engine
from qwen_image_engine.engines.core.errors import Cancelled, OutOfMemory, QwenImageError
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
from qwen_image_engine.runtime.conditioning import Conditioning
from qwen_image_engine.runtime.images.png import png_bytes
from qwen_image_engine.runtime.images.reference_image import ReferenceImages
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
    specialization = _specialization(engine)
    compared = _ComparedBundle(bundle, manifest, recordings, limits)
    try:
        with QwenImage.load(
            compared, engine=engine, memory="sequential", threads=threads, kernel_specialization=specialization
        ) as pipeline:
            steps, trajectories = _steps(pipeline, recordings, limits[TEACHER_FORCED])
            drawn = list(map(partial(_drawn, pipeline), recordings, trajectories)) if pictures else []
    except Cancelled:
        raise
    except QwenImageError as error:
        compared.compare_others(engine, threads, specialization)
        found = first_not_finite(bundle, manifest, compared.rows())
        if found is None:
            raise
        raise QwenImageError(f"{bundle}: {found}") from error
    compared.compare_others(engine, threads, specialization)
    rows = (*compared.rows(), *steps)
    distances = tuple(trajectory.distances for trajectory in trajectories)
    return BundleRows(rows, distances, tuple(drawn), first_not_finite(bundle, manifest, rows))


def _specialization(engine: str) -> KernelSpecialization | None:
    """Return the choice with which two comparisons are equal: in no run do other kernels serve for a while."""
    return "eager" if engine == TENSORRT_RTX.engine else None


@dataclass(frozen=True)
class _ComparedBundle(Bundle):
    """A bundle whose components are compared with recordings when their engines are first loaded.

    The pipeline that is left to itself then runs the same engine: loading one takes longer than its runs here.

    Attributes:
        recordings: cases as the reference ran them.
        limits: threshold of each row.
        by_component: rows of the components that were loaded; `load_engine` adds them.
    """

    recordings: Sequence[Recording]
    limits: Mapping[str, Threshold]
    by_component: dict[str, tuple[Row, ...]] = field(default_factory=dict)

    def load_engine(
        self,
        component: str,
        backend: str,
        threads: int | None = None,
        kernel_specialization: KernelSpecialization | None = None,
    ) -> Engine:
        """Load an engine, and compare it if it is its component's first."""
        running = super().load_engine(component, backend, threads, kernel_specialization)
        if component not in self.by_component:
            try:
                self.by_component[component] = tuple(self._compare(component, running))
            except BaseException:
                running.close()
                raise
        return running

    def compare_others(
        self, engine: str, threads: int | None, kernel_specialization: KernelSpecialization | None
    ) -> None:
        """Compare the components that no pipeline has loaded, one engine at a time."""
        for name in self.manifest.components:
            if name not in self.by_component:
                self.load_engine(name, engine, threads, kernel_specialization).close()

    def rows(self) -> list[Row]:
        """Return the rows of each component in the manifest's order."""
        return [row for name in self.manifest.components for row in self.by_component[name]]

    def _compare(self, name: str, running: Engine) -> Iterator[Row]:
        """Yield the rows of a component on the reference's inputs."""
        codes = CacheCodes(self.manifest.components[name].contract, self.manifest)
        for recording in self.recordings:
            calls = recording.calls.get(name, ())
            if calls:
                runs = tuple(_outputs(call, running.run(codes.inputs(call.inputs)), codes) for call in calls)
                sigmas = recording.sigmas if name in EVERY_STEP else ()
                yield Row(name, recording.case.name, runs, self.limits[name], sigmas)


def _outputs(call: Call, found: Mapping[str, Values], codes: CacheCodes) -> Difference:
    return worst(difference(codes.output(name, found[name]), expected) for name, expected in call.outputs.items())


def _steps(
    pipeline: QwenImage, recordings: Sequence[Recording], threshold: Threshold
) -> tuple[list[Row], list[Trajectory]]:
    """Return the rows of teacher-forced steps, and the trajectories of the bundle left to itself.

    The bundle's own encoder, prefix and step run in both. For the rows, each step is given the reference's latents.
    """
    cases = [recording.case for recording in recordings]
    requests = [(case.prompt, pipeline.read_references(case.references, case.reference_resolution)) for case in cases]
    rows, trajectories = [], []
    for recording, conditioning in zip(recordings, _encoded(pipeline, requests), strict=True):
        case = recording.case
        velocity = pipeline.denoiser(conditioning, width=case.width, height=case.height)
        runs = tuple(difference(velocity(step.latents, step.sigma), step.velocity) for step in recording.steps)
        rows.append(Row(TEACHER_FORCED, case.name, runs, threshold, recording.sigmas))
        trajectories.append(divergence(velocity, recording, recording.steps[0].latents))
    return rows, trajectories


def _encoded(pipeline: QwenImage, requests: Sequence[tuple[str, ReferenceImages]]) -> Iterator[Conditioning]:
    """Yield the conditioning of each request: of all at once, or of one after the other where memory is short."""
    try:
        yield from pipeline.encode_each(requests)
    except OutOfMemory:  # raised before any network runs, if it is the sum that does not fit
        for prompt, images in requests:
            yield pipeline.encode(prompt, images)


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
    except Cancelled:
        raise
    except QwenImageError as error:
        return DrawnCase(case.name, reference, None, str(error))
    return DrawnCase(case.name, reference, png_bytes(picture))
