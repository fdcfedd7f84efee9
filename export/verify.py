"""Parity of a bundle with the fp32 reference: every file's hash, components on real inputs, teacher-forced steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

from qwen_image_engine.engines.device_array import Values, on_host
from qwen_image_engine.engines.engine import package_name, require
from qwen_image_engine.engines.errors import QwenImageError
from qwen_image_engine.export.compare import Difference, difference, worst
from qwen_image_engine.export.recording import REFERENCE_RESOLUTION, Call, Case, Recording, default_cases, record
from qwen_image_engine.export.thresholds import TEACHER_FORCED, THRESHOLDS, Threshold, thresholds
from qwen_image_engine.export.verification import Row, Verification
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.reference.lora_file import LoraFile
from qwen_image_engine.runtime.bundle import Bundle
from qwen_image_engine.runtime.bundle_files import FileFault, verify_files
from qwen_image_engine.runtime.manifest import Manifest, read_manifest, record_verification
from qwen_image_engine.runtime.memory import Memory
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.progress import ProgressBar
from qwen_image_engine.runtime.tokenizer import load_tokenizer


def verify_bundle(
    bundle: Path,
    checkpoint: str | Path | None = None,
    *,
    transformer_file: str | Path | None = None,
    loras: Sequence[LoraFile] | None = None,
    attention: str | None = None,
    engine: str = "onnxruntime",
    threads: int | None = None,
    memory: Memory = "resident",
    cases: Sequence[Case] | None = None,
) -> Verification:
    """Compare a bundle with its checkpoint and keep the result in the manifest.

    Args:
        bundle: the folder.
        checkpoint: folder or hub name; None for the path that the manifest names.
        transformer_file: the single file of the transformer; None for the one that the manifest names, if any.
        loras: adapters, in the order in which they were merged; None for those that the manifest names, if any.
        attention: of the transformer; None for what the manifest names, if anything.
        engine: backend that runs the bundle.
        threads: of one engine; None for every core.
        memory: how the reference holds its networks.
        cases: requests to record; None for three prompts at three sizes, and an edit where the bundle can do one.

    Raises:
        QwenImageError: a file is not as its hash says, the checkpoint is another than the bundle's, the precision has
            no thresholds, the engine is not installed, or the manifest cannot be written.
    """
    manifest = read_manifest(bundle)
    if (manifest.target, manifest.precision) not in THRESHOLDS:
        known = ", ".join(f"{target} {precision}" for target, precision in THRESHOLDS)
        raise QwenImageError(
            f"{bundle}: no thresholds for {manifest.target!r} in precision {manifest.precision!r}; known: {known}"
        )
    require(engine)
    with ProgressBar("hashing the bundle", sum(file.bytes for file in manifest.files.values()), "bytes") as bar:
        faults = verify_files(bundle, manifest, bar.advance)
    if faults:
        raise _changed(bundle, manifest, faults)
    opened = _open(bundle, manifest, checkpoint, transformer_file, loras, attention)
    references = not manifest.absent_for_references
    chosen = default_cases(load_tokenizer(bundle), references=references) if cases is None else cases
    with ProgressBar("running the reference", 0):
        recordings = record(opened, chosen, memory)
    with ProgressBar(f"running {engine}", 0):
        rows = compare_bundle(bundle, manifest, recordings, engine, threads)
    result = Verification(
        engine=engine,
        engine_version=version(package_name(engine)),
        precision=manifest.precision,
        checkpoint=manifest.checkpoint.name,
        config_sha256=manifest.checkpoint.config_sha256,
        weights_sha256=manifest.checkpoint.weights_sha256,
        files=len(manifest.files),
        rows=rows,
    )
    record_verification(bundle, result.to_json())
    return result


def compare_bundle(
    bundle: Path, manifest: Manifest, recordings: Sequence[Recording], engine: str, threads: int | None
) -> tuple[Row, ...]:
    """Every component and the teacher-forced steps of a bundle whose precision has thresholds, against recordings.

    Raises:
        QwenImageError: an engine cannot load a graph, or a run fails.
    """
    limits = thresholds(manifest.target, manifest.precision, engine)
    assert limits is not None
    return (
        *_components(Bundle(bundle, manifest), recordings, limits, engine, threads),
        *_teacher_forced(bundle, recordings, limits[TEACHER_FORCED], engine, threads),
    )


def _changed(bundle: Path, manifest: Manifest, faults: Sequence[FileFault]) -> QwenImageError:
    named = [f"{fault.path} {'is missing' if fault.found is None else 'has changed'}" for fault in faults[:3]]
    more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
    return QwenImageError(
        f"{bundle}: {len(faults)} of {len(manifest.files)} files are not what its manifest says: "
        f"{', '.join(named)}{more}; export again with: qwen-image export {manifest.flags} {bundle}"
    )


def _open(
    bundle: Path,
    manifest: Manifest,
    named: str | Path | None,
    transformer_file: str | Path | None,
    loras: Sequence[LoraFile] | None,
    attention: str | None,
) -> Checkpoint:
    """The checkpoint, which must be the one that the bundle was made from; what is not named is where it was then."""
    expected = manifest.checkpoint
    recorded = {
        "-m": (named, expected.path),
        "--transformer": (transformer_file, expected.transformer_file),
        "--lora": (loras, manifest.loras),
    }
    unnamed = [flag for flag, (given, then) in recorded.items() if given is None and then]
    try:
        checkpoint = Checkpoint.open(
            expected.path if named is None else named,
            transformer_file=expected.transformer_file if transformer_file is None else transformer_file,
            loras=[LoraFile(Path(lora.path), lora.scale) for lora in manifest.loras] if loras is None else loras,
            attention=expected.attention if attention is None else attention,
        )
    except QwenImageError as error:
        if not unnamed:
            raise
        raise QwenImageError(f"{error}; say where the bundle's checkpoint is with {', '.join(unnamed)}") from error
    _same(bundle, checkpoint, "configuration", checkpoint.config_sha256(), expected.config_sha256)
    with ProgressBar(
        "hashing the checkpoint", sum(file.stat().st_size for file in checkpoint.weight_files), "bytes"
    ) as bar:
        weights = checkpoint.weights_sha256(bar.advance)
    _same(bundle, checkpoint, "weights", weights, expected.weights_sha256)
    return checkpoint


def _same(bundle: Path, checkpoint: Checkpoint, what: str, found: str, expected: str) -> None:
    if found != expected:
        wanted = "-m and --attention" if what == "configuration" else "-m, --transformer and --lora"
        raise QwenImageError(
            f"{bundle} was not made from {checkpoint.name} in {checkpoint.folder}: the checkpoint's {what} has sha256 "
            f"{found[:12]}…, the bundle's {expected[:12]}…; name the right one with {wanted}, or export again"
        )


def _components(
    bundle: Bundle,
    recordings: Sequence[Recording],
    thresholds: Mapping[str, Threshold],
    engine: str,
    threads: int | None,
) -> Iterator[Row]:
    """Each component on the reference's inputs, one engine held at a time."""
    for name in bundle.manifest.components:
        with closing(bundle.load_engine(name, engine, threads)) as running:
            for recording in recordings:
                calls = recording.calls.get(name, ())
                if calls:
                    runs = tuple(_outputs(call, running.run(call.inputs)) for call in calls)
                    yield Row(name, recording.case.name, runs, thresholds[name])


def _outputs(call: Call, found: Mapping[str, Values]) -> Difference:
    return worst(difference(on_host(found[name]), expected) for name, expected in call.outputs.items())


def _teacher_forced(
    bundle: Path, recordings: Sequence[Recording], threshold: Threshold, engine: str, threads: int | None
) -> Iterator[Row]:
    """The bundle's own encoder, prefix and step, given the reference's latents at each step."""
    with QwenImage.load(bundle, engine=engine, memory="sequential", threads=threads) as pipeline:
        for recording in recordings:
            case = recording.case
            images = pipeline.read_references(case.references, REFERENCE_RESOLUTION)
            conditioning = pipeline.encode(case.prompt, images)
            velocity = pipeline.denoiser(conditioning, width=case.width, height=case.height)
            runs = tuple(difference(velocity(step.latents, step.sigma), step.velocity) for step in recording.steps)
            yield Row(TEACHER_FORCED, case.name, runs, threshold)
