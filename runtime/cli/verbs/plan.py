"""`qwen-image plan`: an estimate of an export's reads, writes and memory, before anything is written."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_image_engine.engines.backends import BACKENDS, ENGINES, backends_for
from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.plans.cards import find_card
from qwen_image_engine.runtime.cli.shared.arguments import picture_size, whole_numbers
from qwen_image_engine.runtime.cli.shared.checkpoint_arguments import (
    add_checkpoint_arguments,
    open_checkpoint,
    weight_sources,
)
from qwen_image_engine.runtime.cli.shared.extras import export_packages
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION, MAX_REFERENCES
from qwen_image_engine.runtime.system.text import duration_text, size_text, table
from qwen_image_engine.runtime.tools.build.card_fit import fit_of
from qwen_image_engine.runtime.tools.build.device_memory import needs

if TYPE_CHECKING:
    from qwen_image_engine.export.estimate.estimate import Estimate
    from qwen_image_engine.export.targets import Target
    from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint

TYPICAL_CARDS = ("rtx-3060", "rtx-4060-ti-16gb", "rtx-4090", "rtx-5070-ti", "rtx-5090")
"""Cards whose fit is told for tensorrt-rtx if none is named: one or two of each memory size that many people have."""

SUMMARY = "what an export would read, write and need, before anything is written"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "bundle", nargs="?", type=Path, metavar="BUNDLE", help="where it would go; checks the free disk"
    )
    parser.add_argument(
        "--size",
        type=picture_size,
        default=(1024, 1024),
        metavar="WxH",
        help="of the picture whose memory is told, in pixels (1024x1024)",
    )
    parser.add_argument(
        "--references",
        type=int,
        choices=range(MAX_REFERENCES + 1),
        default=0,
        metavar="N",
        help=f"reference images of that picture, up to {MAX_REFERENCES} (0)",
    )
    parser.add_argument(
        "--reference-resolution",
        type=int,
        default=DEFAULT_RESOLUTION,
        metavar="PIXELS",
        help=f"side of each of them, taken as squares ({DEFAULT_RESOLUTION})",
    )
    parser.add_argument(
        "--engine", choices=ENGINES, help="what is to run the bundle; decides --target, and for tensorrt-rtx the cards"
    )
    parser.add_argument(
        "--gpu",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="CARD,…",
        help="with --target tensorrt: whether the plans fit these cards, such as rtx-5090,rtx-4070-super",
    )
    add_recipe_arguments(parser)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags that `plan` and `export` share."""
    from qwen_image_engine.export.targets import TARGETS

    precisions: dict[str, list[str]] = {}
    for target, precision in TARGETS:
        precisions.setdefault(target, []).append(precision)
    add_checkpoint_arguments(parser)
    parser.add_argument("--target", default="cpu", help=f"what runs the graphs: {', '.join(precisions)} (cpu)")
    parser.add_argument(
        "--precision",
        help="of weights and arithmetic, by default the first: "
        + "; ".join(f"{', '.join(found)} for {target}" for target, found in precisions.items()),
    )
    parser.add_argument(
        "--weights",
        choices=("copy", "link"),
        default="copy",
        help="copy them in the bundle's dtype, or hard-link the checkpoint's files (copy)",
    )
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="GLOB",
        help="linears that are not quantised, by name, such as '*.img_mlp.out'; may be repeated",
    )
    parser.add_argument(
        "--skip-blocks",
        type=whole_numbers,
        default=(),
        metavar="0,1,…",
        help="blocks of the transformer that are not quantised",
    )
    parser.add_argument(
        "--without",
        action="append",
        choices=[row.name for row in COMPONENTS.values() if row.optional],
        default=[],
        help="leave out all that reference images alone need; the bundle then takes none",
    )
    parser.add_argument("--recipe", type=Path, metavar="FILE", help="rules of what is quantised and to what, as JSON")
    parser.add_argument("--fp8-attention", action="store_true", help="with fp8: the transformer's attention as well")
    parser.add_argument(
        "--merged-gates",
        action="store_true",
        help="with bf16 for tensorrt: let the compiler make one product of an MLP's two, with SiLU a kernel of its own",
    )


def chosen_recipe(options: argparse.Namespace) -> "Target":
    """Return the target that the flags of `add_recipe_arguments` choose.

    Raises:
        UsageError: there is no such target or precision, flags contradict each other, or the recipe file cannot be read
            or is not in the expected format.
    """
    from qwen_image_engine.calibration.rules.recipe_file import QuantisationRecipe
    from qwen_image_engine.export.targets import choose_target

    return choose_target(
        options.target,
        options.precision,
        weights=options.weights,
        rules=None if options.recipe is None else QuantisationRecipe.read(options.recipe),
        exclude=options.exclude,
        skip_blocks=options.skip_blocks,
        fp8_attention=options.fp8_attention,
        merged_gates=options.merged_gates,
    )


def execute(options: argparse.Namespace) -> VerbResult:
    """Estimate the export from the headers of the checkpoint's files.

    Raises:
        UsageError: there is no such target, precision or card, or flags contradict each other.
        QwenImageError: the checkpoint cannot be read or exported, or a package of the extra `export` is missing.
    """
    with export_packages():
        from qwen_image_engine.export.bundle.request import check_checkpoint
        from qwen_image_engine.export.estimate.estimate import PictureRequest, estimate
        from qwen_image_engine.export.targets import selected

        chosen = chosen_recipe(_for_engine(options))
    if options.references and options.without:
        raise UsageError("--references with --without: that bundle takes none")
    cards = [find_card(name) for name in options.gpu]
    if cards and not chosen.runs_plans:
        raise UsageError(f"--gpu with --target {chosen.name}: plans for cards are built from --target tensorrt")
    checkpoint = open_checkpoint(options.model, options)
    components = selected(checkpoint, options.without)
    check_checkpoint(checkpoint, components)
    picture = PictureRequest(options.size, options.references, options.reference_resolution)
    found = estimate(checkpoint, chosen, picture, weights=options.weights, components=components, bundle=options.bundle)
    document = {
        "checkpoint": {
            "name": checkpoint.name,
            "path": str(checkpoint.folder),
            "licence": checkpoint.licence(),
            **weight_sources(checkpoint),
        },
        **found.to_json(),
    }
    lines = [*_export_lines(checkpoint, found), *_picture_lines(checkpoint, found)]
    if cards:
        from qwen_image_engine.export.estimate.plans import estimated_model

        model = estimated_model(checkpoint, found.plan)
        pictures = needs(model, options.references, options.reference_resolution)
        document["gpu"], fit = fit_of(model, pictures, cards)
        lines += ["", *fit]
    return VerbResult(document, lines)


def _for_engine(options: argparse.Namespace) -> argparse.Namespace:
    """Return the flags with the target and the cards that `--engine` asks for.

    Raises:
        UsageError: the engine runs no graphs of the target.
    """
    if options.engine is None:
        return options
    target = BACKENDS[options.engine].target
    if target is not None and options.target in ("cpu", target):
        options.target = target
    elif options.engine not in backends_for(options.target):
        able = ", ".join(backends_for(options.target))
        raise UsageError(f"--engine {options.engine} with --target {options.target}: expected {able}")
    if options.engine == "tensorrt-rtx" and not options.gpu:
        options.gpu = TYPICAL_CARDS
    return options


def _export_lines(checkpoint: "Checkpoint", found: "Estimate") -> list[str]:
    plan, free_bytes = found.plan, found.free_bytes
    rows = [("network", "stored as", "parameters", "bytes", "exported", "bundle", "in an engine")]
    rows += [
        (
            item.network,
            "+".join(item.dtypes),
            f"{item.stored_parameters:,}",
            size_text(item.stored_bytes),
            f"{item.parameters:,}",
            size_text(item.bundle_bytes),
            size_text(item.engine_bytes),
        )
        for item in plan.networks
    ]
    return [
        f"{checkpoint.name} ({checkpoint.licence()}) for {plan.target} in {plan.precision}, weights {plan.weights}",
        "",
        *table(rows, right=(2, 3, 4, 5, 6)),
        "",
        f"reads    {size_text(plan.stored_bytes)}",
        f"writes   {size_text(plan.bundle_bytes)}"
        + ("" if free_bytes is None else f", {size_text(free_bytes)} free")
        + (" (hard links need the checkpoint's own disk)" if plan.weights == "link" else ""),
        f"time     about {duration_text(found.export_seconds)} to export",
        f"memory   about {size_text(plan.export_memory_bytes)} to export",
    ]


def _picture_lines(checkpoint: "Checkpoint", found: "Estimate") -> list[str]:
    plan = found.plan
    lines = [
        f"         weights when run: {size_text(found.resident_bytes)} resident, "
        f"{size_text(plan.sequential_bytes)} sequential; activations come on top",
    ]
    if plan.target == "tensorrt" and not checkpoint.transformer.bidirectional:
        lines += [
            "         plans with bound weights, tensorrt-rtx's default, share those of prefix and step: "
            f"{size_text(found.taking_turns_bytes)} resident; with weights inside, on a GPU without room for both, "
            "they take turns in as much, and a new prompt loads both again; built with --weight-streaming, the step's "
            "alone stay there"
        ]
    if found.prefix_tokens:
        given = "no reference image"
        if found.references:
            width, height = found.references[0]
            given = f"{len(found.references)} reference images of {width}x{height}"
        lines += [
            f"         keys and values of {found.prefix_tokens:,} tokens before the target ({given}, a prompt of usual "
            f"length): {size_text(found.cache_bytes)}, {size_text(found.cache_token_bytes)} a token"
            f"{' in FP8' if plan.codes else ''}, twice that with --guidance"
        ]
    if found.stages:
        width, height = found.size
        lines += [
            f"         a picture of {width}x{height} with --engine onnxruntime --memory sequential: "
            + ", ".join(f"{stage} {size_text(size)}" for stage, size in found.stages.items())
        ]
    return lines
