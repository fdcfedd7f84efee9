"""Error curves in a verification's page: teacher-forced, and free-running beside its control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from qwen_image_engine.runtime.tools.compare.measures import RELATIVE_L2, other_measures
from qwen_image_engine.runtime.tools.report.html import Html, table
from qwen_image_engine.runtime.tools.report.plot import Line, curves
from qwen_image_engine.runtime.tools.report.sections import legend, more, plots, section, short_names

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.result import Verification

TEACHER_FORCED = "teacher_forced"


def teacher_forced_section(bundles: tuple[Verification, ...]) -> Html:
    """Return the error curves of teacher-forced steps: a panel for each request, a curve for each bundle."""
    names = short_names([bundle.bundle for bundle in bundles])
    rows = [{row.case: row for row in bundle.rows if row.component == TEACHER_FORCED} for bundle in bundles]
    panels, figures, others = [], [], other_measures()
    for number, case in enumerate(dict.fromkeys(case for found in rows for case in found)):
        lines: list[Line] = []
        sigmas: Sequence[float] = ()
        levels: list[tuple[float, int]] = []
        for index, found in enumerate(rows):
            if case not in found:
                continue
            row = found[case]
            lines.append(Line(names[index], [run.relative_l2 for run in row.runs], index))
            sigmas = row.sigmas
            levels.append((row.threshold.relative_l2, index))
            figures += [
                (
                    case,
                    names[index],
                    str(step),
                    f"{sigma:.4f}",
                    f"{run.relative_l2:.2e}",
                    *run.texts(others),
                )
                for step, (sigma, run) in enumerate(zip(row.sigmas, row.runs, strict=True), 1)
            ]
        panels.append(curves(f"forced-{number}", case, lines, sigmas, levels))
    by_mean = [
        name
        for name, found in zip(names, rows, strict=True)
        if any(row.threshold.over == "mean" for row in found.values())
    ]
    held = ""
    if by_mean:
        held = f" The threshold of {', '.join(by_mean)} is for the mean over steps: a single step may lie above it."
    head = ("request", "bundle", "step", "sigma", RELATIVE_L2.heading, *(measure.heading for measure in others))
    keys = legend([*_keys(names), ("threshold, in the colour of its bundle", "muted", True)])
    return section(
        "Teacher-forced steps",
        plots(
            panels,
            "Relative L2 of the velocity where every step is given the reference's latents, by step, with the sigma "
            "(noise level of the latents, 1 is noise alone) below. It grows towards the end, where the velocity is a "
            f"small difference of large terms.{held}",
            keys=keys,
        ),
        more("Figures", table(head, figures, numbers=range(2, len(head)))),
    )


def free_running_section(bundles: tuple[Verification, ...]) -> Html | str:
    """Return the error curves of free-running trajectories, a panel for each request; "" if there are none.

    A bundle has a curve for its own trajectory, and a dashed curve for the control.
    """
    names = short_names([bundle.bundle for bundle in bundles])
    found = [{item.case: item for item in bundle.free_running} for bundle in bundles]
    if not any(found):
        return ""
    panels, figures = [], []
    for number, case in enumerate(dict.fromkeys(case for items in found for case in items)):
        lines: list[Line] = []
        sigmas: Sequence[float] = ()
        for index, items in enumerate(found):
            if case in items:
                item, name = items[case], names[index]
                sigmas = item.sigmas
                lines += [Line(name, item.engine, index), Line(f"{name}: control", item.control, index, dashed=True)]
                steps = zip(item.sigmas, item.engine, item.control, strict=True)
                figures += [
                    (case, name, str(step), f"{sigma:.4f}", f"{own:.2e}", f"{control:.2e}", f"{item.perturbation:.1e}")
                    for step, (sigma, own, control) in enumerate(steps, 1)
                ]
        panels.append(curves(f"free-{number}", case, lines, sigmas))
    head = ("request", "bundle", "step", "sigma after it", "free-running", "control", "control's push")
    keys = legend([*_keys(names), *((f"{label}: control", colour, True) for label, colour, _ in _keys(names))])
    return section(
        "Free-running trajectories",
        plots(
            panels,
            "Relative L2 of the latents after each step where the bundle goes its own way from the same noise, with "
            "the sigma after the step below. The control is the reference itself, pushed once at the start by noise as "
            "large as the engine's error after its first step. Read both together: about the same, and the distance "
            "is what any disturbance of that size becomes; far above, and later steps add errors of the engine's own. "
            "Information, held to no threshold.",
            keys=keys,
        ),
        more("Figures", table(head, figures, numbers=(2, 3, 4, 5, 6))),
    )


def _keys(names: Sequence[str]) -> list[tuple[str, int | str, bool]]:
    return [(name, index, False) for index, name in enumerate(names)]
