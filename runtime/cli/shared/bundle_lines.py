"""The description of a bundle for a person: its source, its files, and each component with its plans."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.contract import describe_shape
from qwen_image_engine.engines.tensorrt.build.summary import HEADINGS, ProfileSummary
from qwen_image_engine.engines.tensorrt.package import PRODUCTS
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry, QuantisedLayer
from qwen_image_engine.runtime.cli.shared.text import plan_text
from qwen_image_engine.runtime.system.text import command_line, size_text, table

_LATER_BLOCK = re.compile(r"_[1-9]\d*$")


def bundle_lines(
    folder: Path, manifest: Manifest, accounts: Mapping[str, Sequence[ProfileSummary]], faults: Sequence[str]
) -> list[str]:
    """Return the lines on a bundle.

    Args:
        folder: folder of the bundle.
        manifest: manifest of the bundle.
        accounts: the compiler's account by plan.
        faults: what is wrong with accounts that cannot be read.
    """
    lines = _source_lines(folder, manifest)
    for name, entry in manifest.components.items():
        lines += ["", *_component_lines(name, entry), *_engine_lines(folder, manifest, name, accounts)]
    return [*lines, *(["", *(f"✗ {fault}" for fault in faults)] if faults else [])]


def _source_lines(folder: Path, manifest: Manifest) -> list[str]:
    source = manifest.checkpoint
    files = [(name, size_text(file.bytes), file.sha256) for name, file in manifest.files.items()]
    return [
        f"bundle {folder} for {manifest.target} in {manifest.precision}, weights {manifest.weights}",
        f"made by qwen-image {manifest.tool.version} from {source.name} in {source.path}",
        *([f"transformer {source.transformer_file}"] if source.transformer_file else []),
        *(f"lora {lora.path} at {lora.scale:g}, sha256 {lora.sha256}" for lora in manifest.loras),
        f"attention {manifest.facts.attention}",
        f"reference images: {'no' if manifest.absent_for_references else 'yes'}",
        f"licence {source.licence}",
        f"checkpoint sha256: configuration {source.config_sha256}, weights {source.weights_sha256}",
        *([f"calibration sha256 {manifest.calibration.sha256}"] if manifest.calibration is not None else []),
        _verified(manifest.verify),
        "",
        *table([("file", "bytes", "sha256"), *files], right=(1,)),
    ]


def _component_lines(name: str, entry: ComponentEntry) -> list[str]:
    """Describe a component's inputs, outputs and quantised layers. List only the first of numbered tensors."""
    lines = [f"{name} ({entry.precision}, opset {entry.opset}): {entry.contract.purpose}"]
    rows = [
        (f"  {side}", spec.name, spec.dtype, describe_shape(spec.shape), spec.meaning)
        for side, specs in (("in", entry.contract.inputs), ("out", entry.contract.outputs))
        for spec in specs
        if not _LATER_BLOCK.search(spec.name)
    ]
    lines += table(rows)
    hidden = len(entry.contract.inputs) + len(entry.contract.outputs) - len(rows)
    if hidden:
        lines.append(f"  and {hidden} more of the same form, numbered on")
    for precision in dict.fromkeys(layer.precision for layer in entry.quantised_layers.values()):
        layers = [layer for layer in entry.quantised_layers.values() if layer.precision == precision]
        lines.append(f"  in {precision}: {len(layers)} linears{_prepared(layers)}")
    if entry.fp8_attention:
        lines.append(f"  attention in fp8: {', '.join(entry.fp8_attention)}")
    if entry.excluded_layers:
        lines.append(f"  in higher precision: {', '.join(entry.excluded_layers)}")
    return lines


def _engine_lines(
    folder: Path, manifest: Manifest, name: str, accounts: Mapping[str, Sequence[ProfileSummary]]
) -> list[str]:
    lines = []
    for plan in manifest.plans.get(name, ()):
        built = f"of {PRODUCTS[plan.builder].text} {plan.version}" + ("" if plan.gpu is None else f" on {plan.gpu}")
        lines += [
            f"  engine: {plan_text(plan, manifest.files)}",
            f"  {built}, compute capability {', '.join(plan.compute_capabilities)}, "
            f"sha256 {manifest.files[plan.file].sha256}",
        ]
        if profiles := accounts.get(plan.file):
            rows = table([HEADINGS, *(profile.row() for profile in profiles)], right=(1, 3))
            lines += [f"    {row}".rstrip() for row in rows]
    if lines:
        return lines
    if manifest.target == "tensorrt":
        return [f"  engine: none yet; build one with: {command_line('qwen-image', 'build', folder)}"]
    return []


def _prepared(layers: Sequence[QuantisedLayer]) -> str:
    """Describe how the inputs of quantised linears were prepared."""
    rotations = sorted({layer.rotation for layer in layers} - {1})
    alphas = sorted({layer.smoothing for layer in layers if layer.smoothing is not None})
    equalised = sum(layer.equalised_with is not None for layer in layers)
    words = f", {equalised} equalised with the linear before or after" if equalised else ""
    words += f", rotated in blocks of {', '.join(map(str, rotations))} channels" if rotations else ""
    return words + (f", smoothed with alpha {', '.join(map(str, alphas))}" if alphas else "")


def _verified(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return "not verified yet; verify with: qwen-image verify BUNDLE"
    state = "every row within its threshold" if result.get("passed") else "✗ rows beyond their thresholds"
    return f"last verified with {result.get('engine')} {result.get('engine_version')}: {state}"
