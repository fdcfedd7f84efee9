"""Pictures in a verification's page: the reference's, each bundle's, and maps of their differences."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_image_engine.runtime.tools.report.html import Content, Html, tag
from qwen_image_engine.runtime.tools.report.pictures import (
    PictureDifference,
    colour_bar,
    difference_map,
    picture,
    picture_difference,
    scale_end,
    side_by_side,
)
from qwen_image_engine.runtime.tools.report.sections import section, short_names

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.result import Verification


def pictures_section(bundles: tuple[Verification, ...]) -> Html | str:
    """Return the pictures, a row for each request; "" if no pictures were kept."""
    found = {(index, item.case): item for index, bundle in enumerate(bundles) for item in bundle.pictures}
    if not found:
        return ""
    differences: dict[tuple[int, str], PictureDifference] = {}
    for key, item in found.items():
        difference = None if item.engine is None else picture_difference(item.engine, item.reference)
        if difference is not None:
            differences[key] = difference
    end = scale_end(list(differences.values()))
    content: list[Content] = [
        tag(
            "p",
            "The same noise, each on its own way through all steps and through its own VAE. Transparency shows the "
            "checkerboard. A difference is the largest of red, green and blue, on white and on black, so that opacity "
            "counts as it is seen; all maps have one scale: ",
            colour_bar(end),
            class_="note",
        )
    ]
    paths = [bundle.bundle for bundle in bundles]
    folders = dict(zip(paths, short_names(paths), strict=True))
    for case in dict.fromkeys(case for _, case in found):
        items = [
            (bundle, found.get((index, case)), differences.get((index, case))) for index, bundle in enumerate(bundles)
        ]
        reference = next(item.reference for _, item, _ in items if item is not None)
        columns = [[picture(reference, f"{case}, drawn by the reference", "reference, fp32")]]
        for bundle, drawn, difference in items:
            if drawn is None:
                continue
            name = f"{bundle.engine}, {bundle.precision}"
            if drawn.engine is None:
                columns.append([tag("p", f"{name}: no picture, {drawn.missing}", class_="mark-bad")])
                continue
            caption = name if len(bundles) == 1 else f"{name}: {folders[bundle.bundle]}"
            columns.append([picture(drawn.engine, f"{case}, drawn by {name}", caption)])
            if difference is not None:
                text = f"difference: largest {difference.largest}, mean {difference.mean:.3g} of 255"
                shown = picture(difference_map(difference, end), f"{case}: where {name} differs", text, plain=True)
                columns[-1].append(shown)
        content += [tag("h3", case), side_by_side(columns)]
    return section("Pictures", content)
