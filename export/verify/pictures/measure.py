"""The measurement of `verify --pictures`: the reference draws the solution, then bundles draw every setting."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TypedDict, Unpack

from qwen_image_engine.engines.backends import BACKENDS, require
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.export.verify.checkpoint import check_contents, named_bundles, open_checkpoint
from qwen_image_engine.export.verify.judge import check_judged, judge_pictures
from qwen_image_engine.export.verify.options import Options, command
from qwen_image_engine.export.verify.pictures.cases import SIZE, default_cases, given_cases
from qwen_image_engine.export.verify.pictures.distance import PACKAGE, check_flip
from qwen_image_engine.export.verify.pictures.draw import Drawn, Guidance, pictures, prepared, solve
from qwen_image_engine.export.verify.pictures.result import BundlePictures, PictureComparison, SettingPictures
from qwen_image_engine.export.verify.pictures.settings import (
    SOLUTION,
    Setting,
    check_settings,
    every_setting,
    with_baselines,
)
from qwen_image_engine.export.verify.recording import Case
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint, Source
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.reference.pipeline import reference_pipeline
from qwen_image_engine.reference.shapes.judge.evaluate import Sampling
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.denoiser import check_guidance
from qwen_image_engine.runtime.images.png import png_bytes
from qwen_image_engine.runtime.pipeline import QwenImage
from qwen_image_engine.runtime.sampling.spacing import Spacing, levels_text
from qwen_image_engine.runtime.system.machine import Machine, package_versions
from qwen_image_engine.runtime.system.progress import ProgressBar


class PictureOptions(TypedDict, total=False):
    """Options of a measurement; every option has a default.

    Attributes:
        settings: settings to measure, in place of `solvers`, `steps` and `sigmas`.
        solvers: names of solvers; all of them are taken with all numbers of steps (euler and the preset's).
        steps: numbers of steps (the preset's and 40, or the length of `sigmas` or of the checkpoint's fixed grid).
        sigmas: noise levels of every setting; None for the checkpoint's own. Baselines keep the checkpoint's own.
        solution: setting with which the reference draws the solution (`settings.SOLUTION`).
        cases: requests, in place of `prompts` and `size`.
        prompts: prompts, drawn with seeds from 0; None for requests that suit the checkpoint, with edits.
        size: width and height of every picture [pixels] (256x256).
        guidance: guidance weight of every request (1, none).
        negative_prompt: negative prompt of every request, with guidance ("").
        judge: number of held-out prompts of each kind, whose pictures the judge of `shapes` scores for each setting.
        pictures: whether to keep the pictures, for a report.
        transformer_file: single file of the transformer; None for the file in the manifest, if any.
        loras: adapters, in the order in which they were merged; None for the adapters in the manifest.
        attention: attention of the transformer; None for the attention in the manifest, if any.
        variant: variant of the weight files; None for the variant in the manifest, if any.
        engine: backend that runs the bundles ("onnxruntime").
        threads: number of threads of one engine; None for every core.
        memory: policy by which reference and bundles hold their networks ("resident").
    """

    settings: Sequence[Setting]
    solvers: Sequence[str]
    steps: Sequence[int]
    sigmas: Spacing
    solution: Setting
    cases: Sequence[Case]
    prompts: Sequence[str] | None
    size: tuple[int, int]
    guidance: float
    negative_prompt: str | None
    judge: int | None
    pictures: bool
    transformer_file: str | Path | None
    loras: Sequence[LoraFile] | None
    attention: str | None
    variant: str | None
    engine: str
    threads: int | None
    memory: Memory


def verify_pictures(
    bundles: Sequence[str | Path], checkpoint: Source | None = None, **options: Unpack[PictureOptions]
) -> PictureComparison:
    """Measure how far bundles' pictures are from the reference's solution, by setting.

    Every setting has the baseline of Euler's method with as many evaluations of the network. Nothing is written.

    Args:
        bundles: folders of the bundles, of one checkpoint.
        checkpoint: folder, hub name or diffusers pipeline; None for the path that the first manifest names.
        options: see `PictureOptions`.

    Raises:
        UsageError: a setting, a request or the guidance is invalid, the judge does not know the checkpoint, no bundle
            is named, or a bundle is named twice.
        QwenImageError: flip-evaluator or the engine is not installed, a file does not match its hash, the checkpoint is
            not the one that a bundle was made from, or the reference failed.
    """
    began = datetime.now(UTC).isoformat(timespec="seconds")
    check_flip()
    manifests = named_bundles(bundles)
    first = next(iter(manifests))
    engine, judge = options.get("engine", "onnxruntime"), options.get("judge")
    require(engine)
    settings, solution = _checked_settings(first, manifests[first], options)
    guidance = _guidance(options)
    for bundle, manifest in manifests.items():
        check_contents(bundle, manifest)
    named = (options.get("transformer_file"), options.get("loras"), options.get("attention"), options.get("variant"))
    opened = open_checkpoint(first, manifests[first], checkpoint, *named)
    if judge is not None:
        check_judged(opened, judge)
    cases = _cases(opened, manifests, options)
    pipelines = {bundle: _open(bundle, manifest, options) for bundle, manifest in manifests.items()}
    for bundle, pipeline in pipelines.items():
        for setting in (solution, *settings):
            for case in _possible(cases, manifests[bundle]):
                prepared(pipeline, case, setting, guidance)
    solutions = _solutions(opened, cases, solution, guidance, options.get("memory", "resident"))
    found = [
        BundlePictures(
            str(bundle),
            manifest.target,
            manifest.precision,
            engine,
            version(BACKENDS[engine].distribution),
            tuple(_drawn(pipelines.pop(bundle), _possible(cases, manifest), settings, guidance, solutions, options)),
        )
        for bundle, manifest in manifests.items()
    ]
    return PictureComparison(
        tuple(found),
        cases,
        solution,
        guidance.weight,
        guidance.negative_prompt,
        manifests[first].checkpoint.name,
        manifests[first].checkpoint.config_sha256,
        manifests[first].checkpoint.weights_sha256,
        {name: png_bytes(rgba) for name, (rgba, _) in solutions.items()} if options.get("pictures") else {},
        _command([*manifests], checkpoint, options),
        {"began": began, "machine": asdict(Machine.here()), "versions": _versions()},
    )


def _checked_settings(bundle: Path, manifest: Manifest, options: PictureOptions) -> tuple[tuple[Setting, ...], Setting]:
    """Return the settings with their baselines, and that of the solution.

    Raises:
        UsageError: one of them cannot be drawn.
    """
    schedule = Bundle(bundle, manifest).schedule()
    asked = options.get("settings") or every_setting(
        options.get("solvers", ()), options.get("steps", ()), options.get("sigmas"), schedule
    )
    solution = options.get("solution", SOLUTION)
    given = options.get("cases")
    sizes = [(case.width, case.height) for case in given] if given else [options.get("size", SIZE)]
    check_settings(asked, solution, schedule, manifest.facts.channels, dict.fromkeys(sizes))
    return tuple(asked), solution


def _guidance(options: PictureOptions) -> Guidance:
    """Return the guidance of every request.

    Raises:
        UsageError: guidance and negative prompt do not go together.
    """
    weight, negative = options.get("guidance", 1.0), options.get("negative_prompt")
    negative = "" if negative is None and weight > 1 else negative
    check_guidance(weight, negative is not None)
    return Guidance(float(weight), negative)


def _cases(checkpoint: Checkpoint, manifests: Mapping[Path, Manifest], options: PictureOptions) -> tuple[Case, ...]:
    given, prompts, size = options.get("cases"), options.get("prompts"), options.get("size", SIZE)
    if given:
        cases = tuple(given)
    elif prompts:
        cases = given_cases(prompts, size)
    else:
        references = not all(manifest.absent_for_references for manifest in manifests.values())
        cases = default_cases(checkpoint, size, references=references)
    if len({case.name for case in cases}) < len(cases):
        raise UsageError("two requests have the same name; name each once")
    return cases


def _possible(cases: Sequence[Case], manifest: Manifest) -> list[Case]:
    return [case for case in cases if not (case.references and manifest.absent_for_references)]


def _open(bundle: Path, manifest: Manifest, options: PictureOptions) -> QwenImage:
    engine, memory = options.get("engine", "onnxruntime"), options.get("memory", "resident")
    return QwenImage.open(Bundle(bundle, manifest), engine, memory, options.get("threads"))


def _solutions(
    checkpoint: Checkpoint, cases: Sequence[Case], solution: Setting, guidance: Guidance, memory: Memory
) -> dict[str, Drawn]:
    with (
        reference_pipeline(checkpoint, memory) as pipeline,
        ProgressBar("drawing the solution", solution.steps * len(cases)) as bar,
    ):
        return solve(pipeline, cases, solution, guidance, bar)


def _drawn(
    pipeline: QwenImage,
    cases: Sequence[Case],
    asked: Sequence[Setting],
    guidance: Guidance,
    solutions: Mapping[str, Drawn],
    options: PictureOptions,
) -> Iterator[SettingPictures]:
    """Yield the pictures of one bundle with each setting; the bundle's engines are freed at the end."""
    settings, judge = with_baselines(asked), options.get("judge")
    with pipeline, ProgressBar(f"drawing on {pipeline.origin.engine}", len(settings)) as bar:
        for setting in settings:
            own = tuple(pictures(pipeline, cases, setting, guidance, solutions, keep=options.get("pictures", False)))
            judged = {}
            if judge is not None:
                edits = any(case.references for case in cases)
                sampling: Sampling = {
                    "solver": setting.solver,
                    "steps": setting.steps,
                    "sigmas": setting.sigmas,
                    "guidance": guidance.weight,
                    "negative_prompt": guidance.negative_prompt,
                }
                judged = judge_pictures(pipeline, judge, edits=edits, sampling=sampling)
            yield SettingPictures(setting, setting in asked, own, judged)
            bar.advance()


def _versions() -> dict[str, str | None]:
    return {**package_versions(), PACKAGE: version(PACKAGE)}


def _command(bundles: Sequence[Path], checkpoint: Source | None, options: PictureOptions) -> str:
    """Return the command `qwen-image verify --pictures` with the same arguments.

    Arguments that have no flag (settings, cases, prompts, memory, a pipeline) are left out.
    """
    shared: Options = {
        "transformer_file": options.get("transformer_file"),
        "loras": options.get("loras"),
        "attention": options.get("attention"),
        "variant": options.get("variant"),
        "engine": options.get("engine", "onnxruntime"),
        "threads": options.get("threads"),
        "judge": options.get("judge"),
    }
    words = [*shlex.split(command(bundles, checkpoint, shared)), "--pictures"]
    if solvers := options.get("solvers"):
        words += ["--solver", ",".join(solvers)]
    if steps := options.get("steps"):
        words += ["-s", *map(str, steps)]
    if (levels := options.get("sigmas")) is not None:
        words += ["--sigmas", levels_text(levels)]
    if "size" in options:
        words += ["--size", "{}x{}".format(*options["size"])]
    if "guidance" in options:
        words += ["--guidance", f"{options['guidance']:g}"]
    if (negative := options.get("negative_prompt")) is not None:
        words += ["-n", negative]
    if "solution" in options:
        words += ["--solution", str(options["solution"].steps)]
    return shlex.join(words)
