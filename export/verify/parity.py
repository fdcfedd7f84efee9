"""Parity of bundles with the fp32 reference: every file's hash, components on real inputs, teacher-forced steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Unpack

from qwen_image_engine.engines.backends import BACKENDS, require
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.export.targets import thresholds
from qwen_image_engine.export.thresholds import TEACHER_FORCED
from qwen_image_engine.export.verify.bundle import BundleRows, compare_bundle
from qwen_image_engine.export.verify.checkpoint import check_contents, named_bundles, open_checkpoint
from qwen_image_engine.export.verify.free_running import FreeRunning, free_running
from qwen_image_engine.export.verify.judge import PictureScores, check_judged, judge_pictures
from qwen_image_engine.export.verify.layers import check_layers, compare_layers
from qwen_image_engine.export.verify.options import Options, command
from qwen_image_engine.export.verify.polygraphy import check_polygraphy, write_polygraphy
from qwen_image_engine.export.verify.recording import Recording, default_cases, record
from qwen_image_engine.export.verify.result import RecordedCase, Verification, Verifications
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint, Source
from qwen_image_engine.reference.pipeline import engine_loader, reference_pipeline
from qwen_image_engine.runtime.bundle.manifest import Manifest, record_verification
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.system.cancellation import check_cancelled
from qwen_image_engine.runtime.system.machine import Machine, package_versions
from qwen_image_engine.runtime.system.progress import ProgressBar
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer


def verify_bundle(bundle: str | Path, checkpoint: Source | None = None, **options: Unpack[Options]) -> Verification:
    """Verify one bundle; see `verify`."""
    return verify([bundle], checkpoint, **options).bundles[0]


def verify(
    bundles: Sequence[str | Path], checkpoint: Source | None = None, **options: Unpack[Options]
) -> Verifications:
    """Compare bundles with the checkpoint that they were made from, and keep each result in its manifest.

    The reference runs once for all of them. A result whose manifest cannot be written is returned all the same; its
    `not_recorded` says why.

    Args:
        bundles: folders of the bundles.
        checkpoint: folder, hub name or diffusers pipeline; None for the path that the first manifest names.
        options: see `Options`.

    Raises:
        UsageError: a limit names no row, the judge does not know the checkpoint, no bundle is named, or a bundle is
            named twice.
        QwenImageError: a file does not match its hash, the checkpoint is not the one that a bundle was made from, a
            precision has no thresholds, or the engine or Polygraphy is not installed.
    """
    began = datetime.now(UTC).isoformat(timespec="seconds")
    engine, threads, memory = options.get("engine", "onnxruntime"), options.get("threads"), options.get("memory")
    limits, judge, polygraphy = options.get("limits", ()), options.get("judge"), options.get("polygraphy")
    manifests = named_bundles(bundles)
    for manifest in manifests.values():
        for limit in limits:
            limit.check((*manifest.components, TEACHER_FORCED))
    if options.get("layers"):
        check_layers(engine)
    require(engine)
    if polygraphy is not None:
        check_polygraphy(polygraphy := Path(polygraphy))
    for bundle, manifest in manifests.items():
        check_contents(bundle, manifest)
    first = next(iter(manifests))
    named = (options.get("transformer_file"), options.get("loras"), options.get("attention"), options.get("variant"))
    opened = open_checkpoint(first, manifests[first], checkpoint, *named)
    if judge is not None:
        check_judged(opened, judge)
    cases = options.get("cases")
    if cases is None:
        references = not all(manifest.absent_for_references for manifest in manifests.values())
        cases = default_cases(load_tokenizer(first), references=references)
    with ProgressBar("running the reference", 0):
        recordings = record(opened, cases, memory or "resident")
    found = [
        _verification(bundle, manifest, opened, recordings, {**options, "engine": engine})
        for bundle, manifest in manifests.items()
    ]
    if judge is not None:
        judged = _judged(manifests, opened, engine, threads, judge)
        found = [replace(item, judged=scores) for item, scores in zip(found, judged, strict=True)]
    if polygraphy is not None:
        write_polygraphy(polygraphy, recordings, manifests)
    check_cancelled()
    found = [_recorded(bundle, result) for bundle, result in zip(manifests, found, strict=True)]
    environment = {"began": began, "machine": asdict(Machine.here()), "versions": package_versions()}
    return Verifications(tuple(found), command([*manifests], checkpoint, options), environment)


def _recorded(bundle: Path, result: Verification) -> Verification:
    """Record a result in the manifest of its bundle, or note in the result why it is not there."""
    try:
        record_verification(bundle, result.to_json())
    except QwenImageError as error:  # a bundle on a read-only disk, or of another user
        return replace(result, not_recorded=str(error))
    return result


def _verification(
    bundle: Path,
    manifest: Manifest,
    checkpoint: Checkpoint,
    recordings: Sequence[Recording],
    options: Options,
) -> Verification:
    """Verify one bundle against the recordings of the cases that it can do.

    The reference's networks are loaded again if they are needed.
    """
    engine, threads, limits = options["engine"], options.get("threads"), options.get("limits", ())
    recordings = [item for item in recordings if not (item.case.references and manifest.absent_for_references)]
    run = [name for name in manifest.components if any(name in recording.calls for recording in recordings)]
    for limit in limits:
        limit.check((*run, TEACHER_FORCED))
    with ProgressBar(f"running {engine}", 0):
        pictures = options.get("pictures", False)
        found = compare_bundle(bundle, manifest, recordings, engine, threads, pictures=pictures)
    with ProgressBar("running the control", 0):
        own = tuple(_free_running(checkpoint, manifest, recordings, found))
    layers = None
    if options.get("layers"):
        named = thresholds(manifest.target, manifest.precision, engine)
        assert named is not None
        threshold = named[manifest.facts.step].relative_l2
        with ProgressBar("comparing layers", 0):
            layers = compare_layers(bundle, manifest, checkpoint, recordings, threshold, engine, threads)
    return Verification(
        bundle=str(bundle),
        target=manifest.target,
        precision=manifest.precision,
        engine=engine,
        engine_version=version(BACKENDS[engine].distribution),
        checkpoint=manifest.checkpoint.name,
        config_sha256=manifest.checkpoint.config_sha256,
        weights_sha256=manifest.checkpoint.weights_sha256,
        files=len(manifest.files),
        cases=tuple(map(RecordedCase.of, recordings)),
        rows=found.rows,
        limits=tuple(limits),
        free_running=own,
        layers=layers,
        not_finite=found.not_finite,
        pictures=found.pictures,
    )


def _free_running(
    checkpoint: Checkpoint,
    manifest: Manifest,
    recordings: Sequence[Recording],
    found: BundleRows,
) -> Iterator[FreeRunning]:
    forced = {row.case: row.runs for row in found.rows if row.component == TEACHER_FORCED}
    with closing(engine_loader(checkpoint)(manifest.facts.step)) as step:
        for recording, engine in zip(recordings, found.distances, strict=True):
            yield free_running(recording, engine, forced[recording.case.name], step)


def _judged(
    manifests: Mapping[Path, Manifest], checkpoint: Checkpoint, engine: str, threads: int | None, prompts: int
) -> Iterator[tuple[PictureScores, ...]]:
    """Yield the judge's scores of each bundle's pictures, beside the reference's scores."""
    edits = [not manifest.absent_for_references for manifest in manifests.values()]
    with ProgressBar("judging the reference", 0), reference_pipeline(checkpoint) as pipeline:
        expected = judge_pictures(pipeline, prompts, edits=any(edits))
    for bundle, with_edits in zip(manifests, edits, strict=True):
        with (
            ProgressBar(f"judging {engine}", 0),
            QwenImage.load(bundle, engine=engine, threads=threads) as pipeline,
        ):
            found = judge_pictures(pipeline, prompts, edits=with_edits)
        yield tuple(PictureScores(kind, score, expected[kind]) for kind, score in found.items())
