"""Kernels of a bundle's plans, counted from the accounts beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.plans.cards import Card
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.engines.tensorrt.kernels.block import ends_of, middle_block
from qwen_image_engine.engines.tensorrt.kernels.kernel import kernels_of
from qwen_image_engine.engines.tensorrt.kernels.layer import read_layers
from qwen_image_engine.engines.tensorrt.kernels.ports import Ports
from qwen_image_engine.runtime.bundle.accounts import account_text
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.system.text import command_line
from qwen_image_engine.runtime.tools.kernels.result import BlockPart, KernelReport, Part, ProfileKernels


def count_kernels(folder: Path, card: Card | None = None) -> KernelReport:
    """Return the kernels of every profile of a bundle's plans.

    Args:
        folder: folder of the bundle.
        card: card of the estimates; of a component that has a plan for it, that plan alone is counted.

    Raises:
        UsageError: the bundle is for a target without plans.
        QwenImageError: the bundle has no plan or no account, or an account is missing, changed or of another form.
    """
    manifest = read_manifest(folder)
    build = command_line("qwen-image", "build", folder, "--engine", "tensorrt-rtx")
    if manifest.target != "tensorrt":
        raise UsageError(
            f"--kernels: {folder} is for {manifest.target}, which has no plans; "
            f"export with --target tensorrt, then: {build}"
        )
    if not manifest.plans:
        raise QwenImageError(
            f"{folder} has no engine files, whose kernels are what is counted; build them with: {build}"
        )
    profiles: list[ProfileKernels] = []
    foreign: list[str] = []
    for name, plans in manifest.plans.items():
        own = [plan for plan in plans if card is not None and card.compute_capability in plan.compute_capabilities]
        foreign += [name] if card is not None and not own else []
        for plan in own or plans:
            profiles += _profiles(folder, manifest, name, plan, card, build)
    builders = {f"{plan.builder} {plan.version}" for plans in manifest.plans.values() for plan in plans}
    target = f"{manifest.target} {manifest.precision}"
    return KernelReport(str(folder), target, tuple(sorted(builders)), card, tuple(profiles), tuple(foreign))


def _profiles(
    folder: Path, manifest: Manifest, component: str, plan: PlanEntry, card: Card | None, build: str
) -> Iterator[ProfileKernels]:
    text = account_text(folder, manifest, plan)
    if text is None:
        raise QwenImageError(f"{folder / plan.file} has no account of its kernels; build it again with: {build}")
    try:
        names, layers = read_layers(text)
    except QwenImageError as error:
        raise QwenImageError(f"{folder / str(plan.layers)}: {error}") from error
    found = [profile.name for profile in plan.profiles]
    if found != [*names.profiles]:
        raise QwenImageError(
            f"{folder / str(plan.layers)} is of the profiles {', '.join(names.profiles)[:200]}, expected "
            f"{', '.join(found)}; build again with: {build}"
        )
    last = max((layer.profile for layer in layers), default=0)
    if last >= len(found):
        raise QwenImageError(
            f"{folder / str(plan.layers)} has a layer of profile {last}, expected {len(found)} profiles; "
            f"build again with: {build}"
        )
    contract = manifest.components[component].contract
    bound = frozenset(weight.name for weight in plan.bound)
    for index, profile in enumerate(plan.profiles):
        ports = Ports.of(contract, profile)
        own = [layer for layer in layers if layer.profile == index]
        kernels, known = kernels_of(names, own, ports, bound)
        block = middle_block(kernels)
        yield ProfileKernels(
            component=component,
            file=plan.file,
            capabilities=plan.compute_capabilities,
            profile=profile.name,
            sizes=ports.values,
            sizes_known=known,
            whole=Part.of(kernels, card),
            block=None
            if block is None
            else BlockPart(Part.of(block.kernels, card), block.blocks, block.alike, block.least_bytes),
            ends=None if block is None else Part.of(ends_of(kernels), card),
        )
