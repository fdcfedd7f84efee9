"""The benchmark of a bundle: engines and baselines run interleaved, and the result keeps every sample.

from qwen_image_engine.runtime.tools.bench import bench

found = bench("bundle", engines=["onnxruntime"], baselines=["diffusers"], sizes=[(512, 512)], steps=[8])
found.cases[0].ratios()
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import product
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from qwen_image_engine.engines.backends import ENGINES, MAX_THREADS, check_kernel_specialization
from qwen_image_engine.engines.core.entries import load_entry
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.tensorrt.package import TENSORRT_RTX, KernelSpecialization
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.component_pool import Memory
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.spacing import Spacing, chosen_levels
from qwen_image_engine.runtime.system.machine import Machine, package_versions
from qwen_image_engine.runtime.system.progress import ProgressBar
from qwen_image_engine.runtime.tools.bench.case import MAX_DRAWS, Case, reference_picture
from qwen_image_engine.runtime.tools.bench.process import ContenderProcess
from qwen_image_engine.runtime.tools.bench.result import Benchmark
from qwen_image_engine.runtime.tools.bench.rounds import run_rounds
from qwen_image_engine.runtime.tools.bench.settings import Settings
from qwen_image_engine.runtime.tools.bench.spec import BASELINES, PEERS, PIPELINE_FOLDER, ContenderSpec

ROUNDS = 12
"""Smallest number of rounds at which the median's interval covers 95% and excludes two outliers on either side."""

MAX_ROUNDS = MAX_DRAWS - 2
"""Limit of counted rounds of one case. Two more draws of the case warm up and read memory."""


def bench(
    bundle: str | Path,
    *,
    checkpoint: object = None,
    engines: Sequence[str] = ("onnxruntime",),
    baselines: Sequence[str] = (),
    sizes: Sequence[tuple[int, int]] = ((DEFAULT_RESOLUTION, DEFAULT_RESOLUTION),),
    steps: Sequence[int | None] = (None,),
    solvers: Sequence[str] = ("euler",),
    sigmas: Spacing = None,
    batches: Sequence[int] = (1,),
    references: Sequence[int] = (0,),
    reference_resolution: int = DEFAULT_RESOLUTION,
    rounds: int = ROUNDS,
    threads: int | None = None,
    memory: Memory = "resident",
    kernel_specialization: KernelSpecialization | None = None,
    pictures: bool = False,
) -> Benchmark:
    """Measure every combination of sizes, solvers, steps, batches and reference images on every engine and baseline.

    Each contender is loaded in a process of its own. All contenders stay loaded and draw in turn.

    Args:
        bundle: the bundle's folder.
        checkpoint: the checkpoint that baselines run: a folder, a hub name, or a diffusers pipeline, whose weights are
            compared with the files that it was loaded from; None for the checkpoint that the manifest names.
        engines: backends that run the bundle, from `engines.backends.ENGINES`.
        baselines: names from `BASELINES`. If a baseline cannot run here, `contenders` has the reason and no runs.
        sizes: (width, height) in pixels, multiples of 32.
        steps: steps of the sampler; None for 40, or for the steps of a checkpoint with a fixed grid.
        solvers: solvers of the sampling equation. In the stage "step" of heun, each of its evaluations counts.
        sigmas: noise levels or the name of a spacing, as of `QwenImage.prepare`; None for the checkpoint's own.
        batches: numbers of images drawn at once, 1 to 4.
        references: numbers of reference images, 0 to 10.
        reference_resolution: side of each reference image [pixels].
        rounds: number of counted rounds; a ratio needs 5.
        threads: threads of one contender; None for every core. Contenders do not run at the same time.
        memory: "resident", or "sequential", which loads each stage in every picture.
        kernel_specialization: when tensorrt-rtx compiles kernels for the shapes of a call, "lazy" or "eager"; None for
            "lazy", and where it is not among the engines and baselines.
        pictures: whether the result keeps one picture of each case and contender, for a report. The picture is drawn
            after the last round.

    Raises:
        UsageError: a request cannot be drawn, or an engine or a baseline is unknown; this is checked before anything is
            loaded.
        QwenImageError: the bundle is missing or damaged, an engine does not load, the checkpoint is not the checkpoint
            of the bundle, or a draw failed.
    """
    settings = Settings.of(
        bundle=str(bundle),
        checkpoint=str(checkpoint) if isinstance(checkpoint, str | Path) else None,
        engines=engines,
        baselines=baselines,
        sizes=sizes,
        steps=steps,
        solvers=solvers,
        sigmas=chosen_levels(sigmas),
        batches=batches,
        references=references,
        reference_resolution=reference_resolution,
        rounds=rounds,
        threads=threads,
        memory=memory,
        kernel_specialization=kernel_specialization,
    )
    opened = Bundle.open(Path(bundle))
    _check(settings)
    cases = list(_cases(opened, settings))
    most = MAX_DRAWS // len(cases) - 2
    if rounds > most:
        raise UsageError(f"{rounds} rounds of {len(cases)} cases: expected at most {most}, or fewer cases")
    if checkpoint is not None and not isinstance(checkpoint, str | Path):
        settings = replace(settings, checkpoint=load_entry(PIPELINE_FOLDER)(checkpoint, opened.manifest))
    began = datetime.now(UTC).isoformat(timespec="seconds")
    names = [*(("engine", name) for name in engines), *(("baseline", name) for name in baselines)]
    with ExitStack() as stack:
        contenders: list[ContenderProcess] = []
        hashed = False
        for role, name in names:
            spec = ContenderSpec(
                name,
                role,
                settings.bundle,
                settings.checkpoint,
                threads,
                memory,
                settings.reference_resolution,
                hashes=name in PEERS and not hashed,  # once: the first of them that loads
                kernel_specialization=kernel_specialization if name == TENSORRT_RTX.engine else None,
            )
            with ProgressBar(f"loading {name}{', and hashing its weights' if spec.hashes else ''}", 0):
                contenders.append(stack.enter_context(ContenderProcess(spec)))
            hashed |= spec.hashes and contenders[-1].facts.missing is None
        running = [contender for contender in contenders if contender.facts.missing is None]
        with ProgressBar("measuring", (rounds + 2) * len(running) * len(cases)) as bar:
            runs = run_rounds(running, cases, rounds, bar.advance, pictures=pictures)
        facts = tuple(contender.facts for contender in contenders)
    environment = {"began": began, "machine": asdict(Machine.here()), "versions": package_versions()}
    return Benchmark(settings, bundle_facts(opened.manifest), environment, facts, runs)


def bundle_facts(manifest: Manifest) -> dict[str, Any]:
    """Return the facts of a bundle for the result. Bytes on disk are by folder, with "." for files in no folder."""
    folders: dict[str, int] = {}
    for name, file in manifest.files.items():
        folder = str(PurePosixPath(name).parent)
        folders[folder] = folders.get(folder, 0) + file.bytes
    return {
        "target": manifest.target,
        "precision": manifest.precision,
        "checkpoint": manifest.checkpoint.name,
        "config_sha256": manifest.checkpoint.config_sha256,
        "weights_sha256": manifest.checkpoint.weights_sha256,
        "disk_bytes": folders,
    }


def _check(settings: Settings) -> None:
    """Check the settings that do not depend on the bundle.

    Raises:
        UsageError: a list is empty; a name is unknown, repeated, or both an engine and a baseline; a checkpoint is
            given without a baseline that runs it; or rounds, threads, memory or kernel specialization are not valid.
    """
    for what, found, known in (("engine", settings.engines, ENGINES), ("baseline", settings.baselines, BASELINES)):
        unknown = [name for name in found if name not in known]
        if unknown:
            raise UsageError(f"unknown {what} {unknown[0]!r}; known: {', '.join(known)}")
        if len(set(found)) < len(found):
            raise UsageError(f"{what}s {', '.join(found)}: one stands there twice")
    if settings.checkpoint is not None and not set(settings.baselines) & set(PEERS):
        raise UsageError(
            f"checkpoint {settings.checkpoint}: engines run the bundle alone, and no baseline that is asked for runs a "
            f"checkpoint; name one of {', '.join(PEERS)}"
        )
    both = set(settings.engines) & set(settings.baselines)
    if both:
        raise UsageError(f"{min(both)} is engine and baseline; a ratio to itself would only tell the noise")
    for name in ("engines", "sizes", "solvers", "steps", "batches", "references"):
        if not getattr(settings, name):
            raise UsageError(f"no {name} are given; name at least one")
    if not 1 <= settings.rounds <= MAX_ROUNDS:
        raise UsageError(f"{settings.rounds} rounds: expected 1 to {MAX_ROUNDS}; a ratio needs 5")
    if settings.threads is not None and not 1 <= settings.threads <= MAX_THREADS:
        raise UsageError(f"{settings.threads} threads: expected 1 to {MAX_THREADS}")
    if settings.memory not in get_args(Memory):
        raise UsageError(f"memory {settings.memory!r}: expected {' or '.join(get_args(Memory))}")
    names = (*settings.engines, *settings.baselines)
    one = TENSORRT_RTX.engine if TENSORRT_RTX.engine in names else names[0]
    check_kernel_specialization(one, settings.kernel_specialization)


def _cases(bundle: Bundle, settings: Settings) -> Iterator[Case]:
    """Yield the case of every combination, after the checks that a run makes.

    Raises:
        UsageError: a case cannot be drawn.
    """
    schedule, channels = bundle.schedule(), bundle.manifest.facts.channels
    for count in settings.references:
        if count < 0:
            raise UsageError(f"{count} reference images: expected 0 or more")
        picture = reference_picture((0, 0), settings.reference_resolution) if count else None
        bundle.read_references([picture] * count if picture else [], settings.reference_resolution)
    euler_alone = [name for name in settings.baselines if name.startswith("diffusers")]
    for (width, height), solver, steps, batch, count in product(
        settings.sizes, settings.solvers, settings.steps, settings.batches, settings.references
    ):
        start = SamplingInputs.prepare(
            schedule, channels, width, height, steps, 0, batch, None, solver, settings.sigmas
        )
        own = schedule.sample_sigmas
        if euler_alone and (solver != "euler" or start.spacing is not None or (own and len(own) != start.steps)):
            raise UsageError(
                f"baseline {euler_alone[0]} takes steps of euler on the checkpoint's own noise levels, and "
                f"{start.steps} steps of {solver}{' on other levels' if solver == 'euler' else ''} are asked for; "
                "leave the baseline out"
            )
        yield Case(width, height, start.steps, batch, count, solver, start.spacing)
