"""A bundle of one component, `step`, whose plan has the account of a real build beside it."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from qwen_image_engine.engines.core.contract import Dims, contract
from qwen_image_engine.engines.plans.entry import PlanEntry, Profile
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import read_manifest, write_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import ComponentEntry, EmbeddingsEntry
from tests.support.kernel_accounts import step_profiles
from tests.support.numpy_engines import FACTS
from tests.support.toy_manifest import toy_manifest

ACCOUNT = "plans/step-ab.layers.json"
SHAPES = Dims(128, 32, 128, 7, 3, 64, 16, 16, 64, 24, 3)
OF_SHAPES = replace(
    FACTS,
    channels=16,
    axes_dims_rope=(8, 28, 28),
    encoder_heads=4,
    encoder_head_dim=32,
    encoder_mrope_section=(6, 5, 5),
    deepstack=3,
    cache_token_bytes=2 * 4 * 7 * 3 * 64,
    vision=replace(FACTS.vision, head_dim=24),
)


def write_kernel_bundle(folder: Path, account: str | None, capabilities: tuple[str, ...] = ("8.6",)) -> Path:
    """Write a bundle with the dimensions of `shapes` and one plan of `step`.

    `account` is the text beside the plan; None leaves the plan without an account.
    """
    (folder / "plans").mkdir(parents=True)
    (folder / "transformer").mkdir()
    listed = contract("step", SHAPES, "bfloat16")
    names = ["transformer/step.onnx", "table.safetensors", "plans/step-ab.plan"]
    for name in names:
        (folder / name).write_bytes(bytes(1000))
    if account is not None:
        names.append(ACCOUNT)
        (folder / ACCOUNT).write_text(account, encoding="utf-8")
    profiles = tuple(step_profiles(listed))
    layers = None if account is None else ACCOUNT
    plan = PlanEntry(
        "plans/step-ab.plan", "ab", "tensorrt-rtx", "1.7.1.116", capabilities, None, None, profiles, layers=layers
    )
    entry = ComponentEntry("transformer/step.onnx", (), "bf16", (), {}, 23, 11, listed)
    write_manifest(
        folder,
        toy_manifest(
            dims=SHAPES,
            facts=OF_SHAPES,
            embeddings=EmbeddingsEntry("table.safetensors", 8, "bfloat16", (2, 128)),
            components={"step": entry},
            files={name: describe_file(folder / name) for name in names},
            plans={"step": (plan,)},
        ),
    )
    return folder


def change_plans(folder: Path, *plans: PlanEntry) -> None:
    """Replace the plans of `step`; none leaves the bundle without plans."""
    write_manifest(folder, replace(read_manifest(folder), plans={"step": plans} if plans else {}))


def add_plan(folder: Path, *capabilities: str) -> None:
    """Add a plan of `step` with the same account, for these compute capabilities."""
    manifest = read_manifest(folder)
    (plan,) = manifest.plans["step"]
    names = {name: name.replace("-ab", "-cd") for name in plan.listed}
    for name, copy in names.items():
        shutil.copy(folder / name, folder / copy)
    files = {**manifest.files, **{copy: describe_file(folder / copy) for copy in names.values()}}
    other = replace(plan, file=names[plan.file], key="cd", layers=names[ACCOUNT], compute_capabilities=capabilities)
    write_manifest(folder, replace(manifest, files=files, plans={"step": (plan, other)}))


def first_plan(folder: Path) -> PlanEntry:
    return read_manifest(folder).plans["step"][0]


def renamed(profiles: tuple[Profile, ...]) -> tuple[Profile, ...]:
    return tuple(replace(item, name=f"other {item.name}") for item in profiles)
