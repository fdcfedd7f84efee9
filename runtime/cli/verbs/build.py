"""`qwen-image build`: engine files of TensorRT, on the GPU that will run them, or of TensorRT for RTX, anywhere."""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, get_args

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.plans.cards import Card, find_card
from qwen_image_engine.engines.plans.entry import BUILDERS
from qwen_image_engine.engines.plans.profile import Range
from qwen_image_engine.engines.tensorrt.build.job import BuildOptions, Weights
from qwen_image_engine.engines.tensorrt.build.launch import Watch
from qwen_image_engine.engines.tensorrt.package import TENSORRT_RTX
from qwen_image_engine.runtime.bundle.bound_lists import bound_bytes
from qwen_image_engine.runtime.cli.shared.arguments import picture_size
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.shared.text import plan_text
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION
from qwen_image_engine.runtime.system.progress import Spinner
from qwen_image_engine.runtime.system.text import duration_text
from qwen_image_engine.runtime.tools.build.platform import DEFAULT_CAPABILITIES
from qwen_image_engine.runtime.tools.build.shapes import (
    DEFAULT_PROMPT_TOKENS,
    DEFAULT_REFERENCES,
    DEFAULT_SIZES,
    ONE_PICTURE,
    BuildShapes,
)

if TYPE_CHECKING:
    from qwen_image_engine.runtime.tools.build.build import Built
    from qwen_image_engine.runtime.tools.build.platform import Platform

SUMMARY = "build engine files of TensorRT for this machine's GPU, or of TensorRT for RTX for any RTX card"

_RECENT_S = 1.0
"""Seconds after which a build that told nothing has ended."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle of --target tensorrt; engines go into it")
    _add_platform_arguments(parser)
    _add_shape_arguments(parser)
    parser.add_argument(
        "--only", type=lambda text: tuple(text.split(",")), default=(), metavar="COMPONENT,…", help="build these alone"
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        help="where plans have them: bound, as inputs that all plans share, or inside (bound with tensorrt-rtx, inside "
        "with tensorrt and with --weight-streaming)",
    )
    parser.add_argument(
        "--strip-weights", action="store_true", help="plans without weights, which come from the bundle when loaded"
    )
    parser.add_argument(
        "--from",
        dest="source",
        type=Path,
        metavar="OTHER",
        help="with --weights bound or --strip-weights: take plans from another bundle, or from its manifest.json and "
        "plans alone, where they are what would be built; a plan is code that the GPU runs, so take none from whom "
        "you do not trust",
    )
    parser.add_argument(
        "--weight-streaming", action="store_true", help="let weights stay in host memory, for a GPU with too little"
    )
    parser.add_argument(
        "--timing-cache", type=Path, metavar="FILE", help="timings of kernels (a file beside the plans, by platform)"
    )
    parser.add_argument("--workspace", type=int, metavar="BYTES", help="scratch memory that a kernel may take (all)")


def _add_platform_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        choices=BUILDERS,
        help="what builds and runs them: tensorrt for the GPU of this machine, tensorrt-rtx for RTX cards, built on "
        "any machine (the installed one; with both, tensorrt where there is a GPU)",
    )
    cards = parser.add_mutually_exclusive_group()
    cards.add_argument(
        "--gpu",
        type=_cards,
        default=(),
        metavar="NAME,…",
        help="with tensorrt-rtx: cards to build for, such as rtx-5090,rtx-4090",
    )
    cards.add_argument(
        "--compute-capability",
        type=lambda text: tuple(text.split(",")),
        default=(),
        metavar="N.N,…",
        help=f"with tensorrt-rtx: compute capabilities to build for ({','.join(DEFAULT_CAPABILITIES)}, those of them "
        "that take the precision)",
    )


def _add_shape_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = ",".join(f"{width}x{height}" for width, height in DEFAULT_SIZES)
    parser.add_argument(
        "--profile",
        type=_sizes,
        default=DEFAULT_SIZES,
        metavar="WxH,…",
        help=f"picture sizes that engines are tuned for; the largest bounds every picture ({sizes})",
    )
    for flag, default, what in (
        ("--prompt-tokens", DEFAULT_PROMPT_TOKENS, "tokens of a prompt"),
        ("--references", DEFAULT_REFERENCES, "reference images of a request"),
        ("--batch", ONE_PICTURE, "pictures drawn at once"),
    ):
        parser.add_argument(
            flag,
            type=_range,
            default=default,
            metavar="MIN:BEST:MAX",
            help=f"{what}: least, tuned for, most; or one number ({default})",
        )
    parser.add_argument(
        "--reference-resolution",
        type=int,
        default=DEFAULT_RESOLUTION,
        metavar="PIXELS",
        help=f"side of a square of a reference image's area ({DEFAULT_RESOLUTION})",
    )


def execute(options: argparse.Namespace) -> VerbResult:
    """Build the plans that do not exist yet, as many at a time as cores and memory allow.

    Raises:
        UsageError: the workspace is below 1 byte, or the plans cannot be built as asked.
        QwenImageError: a build failed.
    """
    from qwen_image_engine.runtime.tools.build.build import build_bundle  # filelock is of the extras alone

    if options.workspace is not None and options.workspace < 1:
        raise UsageError(f"--workspace {options.workspace}: expected a number of bytes")
    shapes = BuildShapes(
        sizes=options.profile,
        prompt_tokens=options.prompt_tokens,
        references=options.references,
        reference_resolution=options.reference_resolution,
        batch=options.batch,
    )
    chosen = BuildOptions(options.strip_weights, options.weight_streaming, options.workspace, options.weights)
    began = time.perf_counter()
    with Spinner("building") as spinner:
        built = build_bundle(
            options.bundle,
            shapes,
            chosen,
            engine=options.engine,
            compute_capabilities=[card.compute_capability for card in options.gpu] or options.compute_capability,
            only=options.only,
            timing_cache=options.timing_cache,
            source=options.source,
            begin=_say_platform,
            announce=_Doing(spinner).announce,
        )
    result = _report(options.bundle, built, time.perf_counter() - began)
    return _with_fit(result, options.bundle, options.gpu, shapes) if options.gpu else result


class _Doing:
    """The line of what is built, by component. A build tells its state ten times a second, until it ends."""

    def __init__(self, spinner: Spinner) -> None:
        self._spinner = spinner
        self._told: dict[str, tuple[float, str]] = {}
        self._lock = Lock()

    def announce(self, component: str) -> Watch:
        """Return the function that shows the state of a component's build. Threads may call it."""

        def show(words: str) -> None:
            now = time.monotonic()
            with self._lock:
                self._told[component] = now, words
                recent = [f"{name} {said}" for name, (at, said) in self._told.items() if now - at < _RECENT_S]
                self._spinner.show(", ".join(recent))

        return show


def _with_fit(result: VerbResult, bundle: Path, cards: "Sequence[Card]", shapes: BuildShapes) -> VerbResult:
    """Return the result of a build with what fits the cards that it was for, of the sizes that its plans take."""
    from qwen_image_engine.runtime.bundle.manifest import read_manifest
    from qwen_image_engine.runtime.tools.build.card_fit import fit_of
    from qwen_image_engine.runtime.tools.build.device_memory import model_of_bundle, needs

    model = model_of_bundle(bundle, read_manifest(bundle), TENSORRT_RTX.engine, cards[0])
    most = max(width * height for width, height in shapes.sizes)
    pictures = tuple(need for need in needs(model) if need.side**2 <= most)
    if not pictures:  # sizes that are told begin at 512x512
        return result
    document, lines = fit_of(model, pictures, cards)
    return VerbResult({**result.document, "fit": document}, [*result.lines, "", *lines])


def _say_platform(platform: "Platform") -> None:
    if sys.stderr is not None:  # a process without a console has none
        print(f"building with {platform}", file=sys.stderr, flush=True)


def _report(bundle: Path, built: "Sequence[Built]", seconds: float) -> VerbResult:
    from qwen_image_engine.runtime.tools.build.checks import ROOM

    document = {
        "bundle": str(bundle),
        "seconds": seconds,
        "components": [
            {
                "component": item.component,
                "reused": item.reused,
                "bytes": item.file.bytes,
                "missing_bytes": dict(item.missing),
                "warnings": list(item.warnings),
                **{key: value for key, value in asdict(item.entry).items() if key != "bound"},
                "bound_bytes": bound_bytes(item.entry.bound),
            }
            for item in built
        ],
    }
    lines = []
    for item in built:
        text = plan_text(item.entry, {item.entry.file: item.file})
        lines.append(f"{item.component}: {text}{', there already' if item.reused else ''}")
        lines += [
            f"  {profile} takes up to {more} bytes more than the GPU has; for all of it {ROOM}"
            for profile, more in item.missing.items()
        ]
        lines += [f"  {warning}" for warning in item.warnings]
    return VerbResult(document, [*lines, f"{bundle}: {len(built)} engines, {duration_text(seconds)}"])


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    """Parse a flag's value, such as "512x512,1024x768"."""
    return tuple(picture_size(part) for part in text.split(","))


def _cards(text: str) -> tuple[Card, ...]:
    """Parse a flag's value, such as "rtx-5090,rtx-4090"."""
    try:
        return tuple(find_card(part) for part in text.split(","))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _range(text: str) -> Range:
    """Parse a flag's value, such as "1:77:1100", or "1" for a range of one number."""
    try:
        sizes = [int(part) for part in text.split(":")]
        return Range.of(*sizes) if len(sizes) == 1 else Range(*sizes)
    except (TypeError, ValueError):
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected least, best and largest in order with colons between, such as 1:77:1100"
        ) from None
