"""The sensitivity part of `qwen-image calibrate`: flags and printed lines."""

import argparse
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.system.text import plural, table

if TYPE_CHECKING:
    from qwen_image_engine.calibration.sensitivity.analysis import Analysis
    from qwen_image_engine.calibration.sensitivity.search import FoundRecipe

_WORST = 10
_TARGET, _PRECISION = "tensorrt", "fp8"


def add_sensitivity_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of the sensitivity analysis."""
    from qwen_image_engine.export.targets import TARGETS

    rows = [row for row in TARGETS.values() if row.quantisation is not None and not row.twin]
    targets = " or ".join(dict.fromkeys(row.name for row in rows))
    precisions = " or ".join(dict.fromkeys(row.precision for row in rows))
    parser.add_argument(
        "--sensitivity",
        action="store_true",
        help="then quantise each linear of the transformer alone, and write what that does to the step's output",
    )
    parser.add_argument("--target", help=f"with --sensitivity: what runs the graphs, {targets} ({_TARGET})")
    parser.add_argument("--precision", help=f"with --sensitivity: to quantise to, {precisions} ({_PRECISION})")
    parser.add_argument(
        "--target-error",
        type=float,
        metavar="E",
        help="with sensitivity, write the recipe with the fewest linears kept high whose error is at most E: "
        "teacher-forced relative L2, the schedule's mean, such as 0.01",
    )


@dataclass(frozen=True)
class SensitivityOptions:
    """The options of a sensitivity analysis.

    Attributes:
        target: target that runs the quantised graphs.
        precision: precision to quantise to.
        target_error: largest error of the recipe to search for; None for no search.
    """

    target: str
    precision: str
    target_error: float | None


def chosen_sensitivity(options: argparse.Namespace) -> SensitivityOptions | None:
    """Return the options that the flags request; None if they do not request sensitivity.

    Raises:
        UsageError: `--target` or `--precision` is given without `--sensitivity`, nothing is quantised for the target
            and precision, or the target error is not a positive number.
    """
    from qwen_image_engine.calibration.sensitivity.analysis import check_analysis

    if not options.sensitivity and options.target_error is None:
        if options.target is not None or options.precision is not None:
            raise UsageError("--target and --precision are of --sensitivity, which was not asked for")
        return None
    chosen = SensitivityOptions(options.target or _TARGET, options.precision or _PRECISION, options.target_error)
    check_analysis(chosen.target, chosen.precision, chosen.target_error)
    return chosen


def sensitivity_lines(analysis: "Analysis") -> list[str]:
    """Return the lines of an analysis: tables of linear groups and worst linears, the found recipe, and the files."""
    sensitivity, document = analysis.sensitivity, analysis.to_json()
    pictures = plural(len(sensitivity.pictures), "picture")
    together = document["together"]
    sigmas = sensitivity.mean_sigmas()
    groups = [("linears", "count", "relative L2", "worst at sigma", "worst linear", "relative L2")]
    for group, found in document["groups"].items():
        by_step = found["rms_by_step"]
        groups.append(
            (
                group,
                str(found["linears"]),
                _percent(found["rms"]),
                f"{sigmas[by_step.index(max(by_step))]:.3f}",
                found["worst"],
                _percent(sensitivity.rms(found["worst"])),
            )
        )
    worst = [("", "worst linears", "relative L2", "worst at sigma")]
    for rank, name in enumerate(sensitivity.ranked()[:_WORST], 1):
        by_step = sensitivity.by_step([name])
        worst.append((f"{rank}", name, _percent(sensitivity.rms(name)), f"{sigmas[by_step.index(max(by_step))]:.3f}"))
    return [
        "",
        f"sensitivity of {len(sensitivity.alone)} linears in {sensitivity.precision} for {sensitivity.target}, "
        f"{pictures}: the step's output is {_percent(together['judged'])} off with all of them quantised "
        f"({_percent(together['predicted'])} by the sum of squares)",
        *table(groups, right=(1, 2, 3, 5)),
        "",
        *table(worst, right=(0, 2, 3)),
        "",
        *([] if analysis.found is None else [_found_line(analysis.found)]),
        *(f"wrote {path}" for path in (analysis.json, analysis.svg, analysis.recipe) if path is not None),
    ]


def _found_line(found: "FoundRecipe") -> str:
    return (
        f"{len(found.high)} of {found.linears} linears stay high for at most {_percent(found.target_error)}: "
        f"{_percent(found.error)} measured; export with --recipe"
    )


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"
