"""The page of a verification, of one bundle or several."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qwen_image_engine.export.verify.report.components import components_section, layers_section
from qwen_image_engine.export.verify.report.pictures import pictures_section
from qwen_image_engine.export.verify.report.steps import free_running_section, teacher_forced_section
from qwen_image_engine.export.verify.result import verdict_text
from qwen_image_engine.runtime.tools.report.html import Content, Html, table, tag
from qwen_image_engine.runtime.tools.report.sections import (
    commands,
    environment,
    facts,
    marked,
    more,
    page,
    section,
    short_names,
    verdict,
)

if TYPE_CHECKING:
    from qwen_image_engine.export.verify.result import Verification, Verifications

_LONG_PROMPT = 160


def verify_page(found: Verifications) -> str:
    """Return the page: verdict, pictures, components, curves, other measurements, and how to repeat it."""
    bundles, first = found.bundles, found.bundles[0]
    shown = "One bundle" if len(bundles) == 1 else f"{len(bundles)} bundles"
    names = ", ".join(short_names([bundle.bundle for bundle in bundles]))
    return page(
        f"{names} against {short_names([first.checkpoint])[0]}",
        "qwen-image verify",
        f"{shown} against the fp32 reference, every component on the reference's own inputs.",
        [_verdict(bundle) for bundle in bundles],
        _facts(first) if len(bundles) == 1 else "",
        pictures_section(bundles),
        components_section(bundles),
        teacher_forced_section(bundles),
        free_running_section(bundles),
        layers_section(bundles),
        _judged(bundles),
        _limits(bundles),
        _cases(bundles),
        environment(found.environment, _about(bundles)),
        commands(found.command),
    )


def _verdict(bundle: Verification) -> Html:
    text = verdict_text(bundle)
    title = f"{'✓' if bundle.passed else '✗'} {text[0].upper()}{text[1:]}"
    return verdict("good" if bundle.passed else "bad", title, f"{bundle.bundle}, {bundle.target} {bundle.precision}")


def _facts(bundle: Verification) -> Html:
    closest = max(bundle.rows, key=lambda row: row.judged.relative_l2 / row.threshold.relative_l2)
    return facts(
        {
            "rows within their thresholds": f"{sum(row.passed for row in bundle.rows)} of {len(bundle.rows)}",
            "least margin": f"{closest.component}: {closest.judged.relative_l2:.1e} of "
            f"{closest.threshold.relative_l2:.0e}",
            "files as hashed": str(bundle.files),
            "engine": f"{bundle.engine} {bundle.engine_version}",
        }
    )


def _judged(bundles: tuple[Verification, ...]) -> Html | str:
    kinds = dict.fromkeys(item.kind for bundle in bundles for item in bundle.judged)
    if not kinds:
        return ""
    found = [{item.kind: item for item in bundle.judged} for bundle in bundles]
    rows: list[list[Content]] = []
    for kind in kinds:
        scores = [items.get(kind) for items in found]
        reference = next(item.reference for item in scores if item is not None)
        rows.append([kind, str(reference.tried), f"{reference.rate:.1%} ({reference.fulfilled})"])
        rows[-1] += ["" if item is None else f"{item.engine.rate:.1%} ({item.engine.fulfilled})" for item in scores]
    head = ("kind", "tried", "reference", *(bundle.bundle for bundle in bundles))
    note = (
        "Held-out prompts, drawn by bundle and reference from the same seeds: the share (and number) whose picture the "
        "judge accepts."
    )
    faults = [
        (kind, f"{name}: {fault}", str(count))
        for kind in kinds
        for bundle, items in zip(bundles, found, strict=True)
        if kind in items
        for name, score in (("reference", items[kind].reference), (bundle.bundle, items[kind].engine))
        for fault, count in score.faults.items()
    ]
    wrong = table(("kind", "what was wrong", "pictures"), dict.fromkeys(faults), numbers=(2,)) if faults else ""
    return section("Judge", tag("p", note, class_="note"), table(head, rows, numbers=range(1, len(head))), wrong)


def _limits(bundles: tuple[Verification, ...]) -> Html | str:
    rows = [
        (
            marked("good", "✓ holds") if bundle.holds(limit) else marked("bad", "✗ broken"),
            limit.row,
            f"{bundle.judged_error(limit.row):.1e}",
            f"{limit.relative_l2:g}",
            bundle.bundle,
        )
        for bundle in bundles
        for limit in bundle.limits
    ]
    if not rows:
        return ""
    return section("Limits of --fail-on", table(("", "row", "relative L2", "limit", "bundle"), rows, numbers=(2, 3)))


def _cases(bundles: tuple[Verification, ...]) -> Html:
    cases = dict.fromkeys(case for bundle in bundles for case in bundle.cases)
    rows = [
        (
            case.name,
            f"{case.width}x{case.height}",
            str(case.steps),
            str(case.seed),
            str(case.references),
            tag("div", _prompt(case.prompt), class_="wrap"),
        )
        for case in cases
    ]
    head = ("request", "pixels", "steps", "seed", "reference images", "prompt")
    return section("Requests", table(head, rows, numbers=(2, 3, 4)))


def _prompt(text: str) -> Content:
    """Return a prompt, folded if it is long."""
    return text if len(text) <= _LONG_PROMPT else more(f"{text[:_LONG_PROMPT]}…", text)


def _about(bundles: tuple[Verification, ...]) -> list[tuple[str, str]]:
    first = bundles[0]
    rows = [("checkpoint", first.checkpoint), ("config_sha256", first.config_sha256)]
    rows.append(("weights_sha256", first.weights_sha256))
    for bundle in bundles:
        engine = f"{bundle.engine} {bundle.engine_version}"
        rows.append((f"bundle {bundle.bundle}", f"{bundle.target} {bundle.precision}, {engine}, {bundle.files} files"))
    return rows
