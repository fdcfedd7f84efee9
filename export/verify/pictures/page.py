"""The page of `verify --pictures`: curves of error by evaluations, figures, and pictures in a row for each solver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from qwen_image_engine.export.verify.pictures.result import BundlePictures, PictureComparison, Row
from qwen_image_engine.export.verify.pictures.tables import HEAD, cells, guidance
from qwen_image_engine.runtime.tools.report.html import Content, Html, table, tag
from qwen_image_engine.runtime.tools.report.pictures import picture, side_by_side
from qwen_image_engine.runtime.tools.report.plot import Line, curves
from qwen_image_engine.runtime.tools.report.sections import (
    commands,
    environment,
    legend,
    page,
    plots,
    section,
    short_names,
    verdict,
)

OPEN_REQUESTS = 3
"""Number of requests whose pictures are not folded."""


def pictures_page(found: PictureComparison) -> str:
    """Return the page: verdict, curves, figures, pictures, requests, and how to repeat it."""
    names = short_names([bundle.bundle for bundle in found.bundles])
    rows = [list(bundle.rows(found.cases)) for bundle in found.bundles]
    solution = found.solution
    return page(
        f"{', '.join(names)}: pictures by solver",
        "qwen-image verify --pictures",
        f"Distance from the solution, which the fp32 reference draws with {solution.steps} steps of {solution.solver} "
        f"({solution.evaluations} evaluations) from the same noise{guidance(found)}.",
        [_verdict(name, own) for name, own in zip(names, rows, strict=True)],
        _curves(names, rows),
        _figures(names, found.bundles, rows),
        _pictures(found, names),
        _requests(found),
        environment(found.environment, _about(found)),
        commands(found.command),
    )


def _verdict(name: str, rows: Sequence[Row]) -> Html:
    """Return the box of a bundle: the largest gain of each kind of request."""
    missing = sum(picture.distance is None for row in rows for picture in row.own)
    if missing:
        return verdict("bad", f"✗ {name}: {missing} pictures could not be drawn")
    texts = []
    for kind in dict.fromkeys(row.kind for row in rows):
        most = max((row for row in rows if row.kind == kind and row.found.asked), key=lambda row: row.gain or 0.0)
        assert most.figures is not None
        assert most.baseline is not None
        texts.append(
            f"{kind}: {most.found.setting} gains most over Euler with as many evaluations, {most.gain or 0.0:+.1f} dB "
            f"({most.figures.psnr_rgb:.1f} for {most.baseline.psnr_rgb:.1f} dB)"
        )
    return verdict("good", f"✓ {name}: every picture was drawn", *texts)


def _curves(names: Sequence[str], rows: Sequence[Sequence[Row]]) -> Html:
    """Return the curves: a panel for each bundle, kind of request and measure, a line for each solver."""
    lines = list(dict.fromkeys(row.found.setting.line for own in rows for row in own))
    panels = []
    for number, (name, own) in enumerate(zip(names, rows, strict=True)):
        for kind in dict.fromkeys(row.kind for row in own):
            of_kind = [row for row in own if row.kind == kind]
            title = f"{kind}, {name}" if len(names) > 1 else kind
            for measure, label in (("rgb", "RMS of colours"), ("flip", "FLIP"), ("latents", "latents")):
                shown = [_line(label, index, measure, of_kind) for index, label in enumerate(lines)]
                panels.append(
                    curves(f"{measure}-{kind}-{number}", f"{label}, {title}", shown, across="evals")  # fits the margin
                )
    caption = (
        "Error by evaluations of the network, one line for each solver; down is closer. RMS of colours is "
        "10^(-PSNR/20): 1 is white for black, 3.9e-3 is one of 255. FLIP is the difference that an eye sees. Latents "
        "is the relative L2 of the final latents, which rounding to bytes does not hide. Equal pictures leave a gap."
    )
    return section(
        "Error by evaluations", plots(panels, caption, keys=legend([(text, n, False) for n, text in enumerate(lines)]))
    )


def _line(name: str, index: int, measure: str, rows: Sequence[Row]) -> Line:
    own = [(row.found.setting, row.figures) for row in rows if row.found.setting.line == name and row.figures]
    values = [
        {"rgb": 10 ** (-found.psnr_rgb / 20), "flip": found.flip, "latents": found.latents}[measure] for _, found in own
    ]
    return Line(name, values, index, at=[setting.evaluations for setting, _ in own])


def _figures(names: Sequence[str], bundles: Sequence[BundlePictures], rows: Sequence[Sequence[Row]]) -> Html:
    shown: list[Content] = []
    for name, bundle, own in zip(names, bundles, rows, strict=True):
        caption = f"{name}, {bundle.target} {bundle.precision}, {bundle.engine} {bundle.engine_version}"
        judged = any(row.judged for row in own)
        head = HEAD if judged else HEAD[:-1]
        shown.append(table(head, [cells(row)[: len(head)] for row in own], numbers=range(2, 11), caption=caption))
    note = (
        "PSNR in dB of red, green and blue over white, alpha apart, the mean and the worst of the requests; equal "
        "pictures count as 100 dB. Beside each setting, Euler on the checkpoint's own noise levels with as many "
        "evaluations of the network."
    )
    return section("Figures", tag("p", note, class_="note"), shown)


def _pictures(found: PictureComparison, names: Sequence[str]) -> Html | str:
    """Return the pictures: for each request a row for each bundle and solver, the solution first."""
    if not found.solutions:
        return ""
    content: list[Content] = []
    for number, case in enumerate(found.cases):
        rows: list[Content] = [tag("p", case.prompt, class_="note")]
        solution = picture(found.solutions[case.name], f"{case.name}, the solution", "solution")
        for name, bundle in zip(names, found.bundles, strict=True):
            shown = _columns(name if len(names) > 1 else "", bundle, case.name)
            rows += [side_by_side([[solution], *columns]) for columns in shown]
        if number < OPEN_REQUESTS:
            content += [tag("h3", case.name), rows]
        else:
            content.append(tag("details", tag("summary", case.name), rows))
    return section("Pictures", content)


def _columns(name: str, bundle: BundlePictures, case: str) -> Iterator[list[list[Html]]]:
    """Yield the columns of each solver: its pictures of a request, by evaluations."""
    for line in dict.fromkeys(item.setting.line for item in bundle.settings):
        columns = []
        for item in bundle.settings:
            for own in item.pictures:
                if item.setting.line != line or own.case != case:
                    continue
                setting = f"{name}: {item.setting}" if name else str(item.setting)
                if own.png is None or own.distance is None:
                    columns.append([tag("p", f"{setting}: no picture, {own.missing}", class_="mark-bad")])
                    continue
                figures = f"{own.distance.psnr_rgb:.1f} dB, FLIP {own.distance.flip:.4f}"
                text = f"{setting}, {item.setting.evaluations} evaluations: {figures}"
                columns.append([picture(own.png, f"{case}, {setting}", text)])
        if columns:
            yield columns


def _requests(found: PictureComparison) -> Html:
    rows = [
        (
            case.name,
            f"{case.width}x{case.height}",
            str(case.seed),
            str(len(case.references)),
            tag("div", case.prompt, class_="wrap"),
        )
        for case in found.cases
    ]
    return section("Requests", table(("request", "pixels", "seed", "reference images", "prompt"), rows, numbers=(2, 3)))


def _about(found: PictureComparison) -> list[tuple[str, str]]:
    rows = [("checkpoint", found.checkpoint), ("config_sha256", found.config_sha256)]
    rows.append(("weights_sha256", found.weights_sha256))
    for bundle in found.bundles:
        engine = f"{bundle.engine} {bundle.engine_version}"
        rows.append((f"bundle {bundle.bundle}", f"{bundle.target} {bundle.precision}, {engine}"))
    return rows
