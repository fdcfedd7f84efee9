"""From a checkpoint to a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from qwen_image_engine.calibration.observe.record import Calibration, calibrate_command
from qwen_image_engine.calibration.quantise.network import QuantisedNetwork, check_rules, quantised_networks
from qwen_image_engine.calibration.rules.recipe_file import RecipeFile
from qwen_image_engine.engines.backends import require
from qwen_image_engine.engines.core.components import COMPONENTS, FOR_REFERENCE_IMAGES
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError, is_memory
from qwen_image_engine.export.bundle.cache_key import origin, tool
from qwen_image_engine.export.bundle.network_folder import NetworkFolder, reuse_network, write_network
from qwen_image_engine.export.bundle.reuse_plans import keep_plans
from qwen_image_engine.export.bundle.staging import check_output, staged
from qwen_image_engine.export.estimate.plan import ExportPlan, check_disk, check_memory, plan_export
from qwen_image_engine.export.targets import Target, choose_target, networks, selected
from qwen_image_engine.export.weights.file_hashes import FileHashes
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint, Source
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.pipeline import model_facts, schedule_config
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import (
    CalibrationEntry,
    CheckpointEntry,
    FileEntry,
    LoraEntry,
    Manifest,
    is_bundle,
    read_manifest,
    write_manifest,
)
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer

Progress = Callable[[str, int, int], None]
"""Told what is being worked on, bytes done so far, and bytes in all.

That is "graph of " a component, "weights of " a network, "audit of " a component, and "checkpoint" while there is
nothing to do but wait for its hashes.
"""

# The host side needs the tokenizer and the schedule; sample_sigmas stand in model_index.json.
_COPIED_FOLDERS = ("scheduler", "processor")
_COPIED_FILES = ("model_index.json",)


def export_bundle(
    checkpoint: Checkpoint | Source,
    output: str | Path,
    *,
    target: str = "cpu",
    precision: str | None = None,
    weights: Literal["copy", "link"] = "copy",
    calibration: str | Path | None = None,
    rules: str | Path | None = None,
    exclude: Sequence[str] = (),
    skip_blocks: Sequence[int] = (),
    fp8_attention: bool = False,
    without: Sequence[str] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Write the bundle `output` and return its manifest.

    The weights are never in memory: graphs are traced from fake ones, and the real ones are streamed in blocks ("copy")
    or hard-linked ("link"). `output` appears when it is complete; where it is a bundle already, it is replaced, and
    folders of it that an export would only make again are kept.

    Args:
        checkpoint: an opened one, or what `Checkpoint.open` takes: folder, hub name, diffusers pipeline.
        output: a new folder, or a bundle to replace.
        target: what the graphs are lowered for.
        precision: of weights and arithmetic; None for fp32 on a CPU and bf16 on a GPU.
        weights: "copy" them in the bundle's dtype, or "link" to the checkpoint's own files.
        calibration: the folder that `calibrate` wrote, for static scales.
        rules: a recipe file, in the place of the target's own rules.
        exclude: glob patterns of linears that a quantised precision leaves as they are.
        skip_blocks: blocks of the transformer that it leaves as they are.
        fp8_attention: whether the transformer's attention is FP8 too.
        without: names of optional components; a bundle without one of them takes no reference images.
        progress: called as the work goes on.

    Raises:
        UsageError: no such target and precision, or way of placing weights; a pattern matches nothing, or a block is
            not there; weights that adapters are merged into are to be linked; or there is nothing of that name to
            leave out.
        QwenImageError: the checkpoint is unsound, `output` cannot be written or is no bundle, no link is possible, or
            a quantised linear does not run as one.
    """
    chosen = choose_target(
        target,
        precision,
        weights=weights,
        rules=None if rules is None else RecipeFile.read(Path(rules)),
        exclude=exclude,
        skip_blocks=skip_blocks,
        fp8_attention=fp8_attention,
    )
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    output = Path(output).expanduser().absolute()
    components = selected(checkpoint, without)
    check_checkpoint(checkpoint, components)
    check_rules(checkpoint, chosen.quantisation, chosen.precision)
    if chosen.audited:
        require("onnxruntime")  # missing, better told now than after minutes of work
    calibrated = open_calibration(checkpoint, chosen, calibration)
    quantised = quantised_networks(checkpoint, chosen.quantisation, calibrated)
    _check_calibrated(calibrated, components)
    plan = plan_export(checkpoint, chosen, quantised, weights, components)
    check_memory(plan)
    files = checkpoint.weight_files
    meter = _Meter(progress, sum(file.stat().st_size for file in files) + plan.bundle_bytes)
    try:
        check_output(output)
        previous = _previous(output)
        if previous is None:
            check_disk(plan, output)
        with staged(output) as folder, FileHashes(files, lambda: meter.add("checkpoint", 0)) as hashes:
            meter.hashes = hashes
            manifest = _write(checkpoint, chosen, calibrated, quantised, plan, folder, output, previous, hashes, meter)
            write_manifest(folder, manifest)
    except OSError as error:
        raise QwenImageError(
            f"{output}: cannot be written ({error.strerror or error}) at {meter.stage}; "
            f"the whole bundle takes {plan.bundle_bytes} bytes"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise QwenImageError(
            f"{output}: memory ran out at {meter.stage}; an export takes about {plan.export_memory_bytes} bytes"
        ) from error
    return manifest


def open_calibration(checkpoint: Checkpoint, chosen: Target, folder: str | Path | None) -> Calibration | None:
    """What static scales come from, None where the recipe has none.

    Raises:
        UsageError: the recipe needs one and none is named, or one is named that it does not need.
        QwenImageError: it is damaged, or of another checkpoint.
    """
    wanted = chosen.quantisation is not None and chosen.quantisation.static
    if folder is None:
        if wanted:
            raise UsageError(
                f"--target {chosen.name} --precision {chosen.precision} needs --calibration FOLDER; make one with: "
                f"{calibrate_command(checkpoint.flags, 'FOLDER')}"
            )
        return None
    if not wanted:
        raise UsageError(f"--calibration with --target {chosen.name} --precision {chosen.precision}: not needed there")
    return Calibration.open(Path(folder), checkpoint)


def _check_calibrated(calibration: Calibration | None, components: Collection[str]) -> None:
    """Refuse a bundle for reference images whose scales none were seen for.

    Raises:
        QwenImageError: not so.
    """
    if calibration is not None and {*FOR_REFERENCE_IMAGES} & {*components} and not calibration.settings.images:
        raise QwenImageError(
            "the calibration saw no reference images; calibrate again with --images, or export with --without vision "
            "for a bundle that takes none"
        )


def _write(
    checkpoint: Checkpoint,
    chosen: Target,
    calibration: Calibration | None,
    quantised: Mapping[str, QuantisedNetwork],
    plan: ExportPlan,
    folder: Path,
    output: Path,
    previous: Manifest | None,
    hashes: FileHashes,
    meter: _Meter,
) -> Manifest:
    copied = _copy_host_files(checkpoint.folder, folder)
    names = networks(plan.components)
    used = {network: calibration.sha256 if calibration and quantised[network].layers else None for network in names}
    graphs = {network: [name for name in plan.components if COMPONENTS[name].network == network] for network in names}

    def made_from(network: str) -> str:
        return origin(checkpoint, network, graphs[network], chosen, used[network], plan.weights, hashes)

    # Waits for the hashes, and only where something might be reused.
    kept = previous.origins if previous is not None else {}
    new = tuple(
        item for item in plan.networks if item.network not in kept or kept[item.network] != made_from(item.network)
    )
    check_disk(replace(plan, networks=new), output)
    parts = []
    for item in plan.networks:
        part: NetworkFolder | None = None
        if previous is not None and item not in new:
            part = reuse_network(previous, output, item.network, folder, hashes)
        if part is None:
            part = write_network(
                checkpoint,
                graphs[item.network],
                chosen,
                quantised[item.network],
                plan.weights,
                folder,
                hashes,
                meter.add,
            )
        else:
            meter.add(f"weights of {item.network}", item.bundle_bytes)
        parts.append(part)
    (embeddings,) = (part.embeddings for part in parts if part.embeddings is not None)
    manifest = Manifest(
        tool=tool(),
        target=chosen.name,
        precision=chosen.precision,
        weights=plan.weights,
        checkpoint=CheckpointEntry(
            name=checkpoint.name,
            path=str(checkpoint.folder.resolve()),
            licence=checkpoint.licence(),
            config_sha256=checkpoint.config_sha256(),
            weights_sha256=checkpoint.combined_weights_sha256(hashes),
            transformer_file=None
            if checkpoint.transformer_file is None
            else str(checkpoint.transformer_file.absolute()),
            attention=checkpoint.attention,
        ),
        dims=dims(checkpoint),
        facts=model_facts(checkpoint),
        embeddings=embeddings,
        components={name: entry for part in parts for name, entry in part.components.items()},
        files={**copied, **{name: entry for part in parts for name, entry in part.describe_files().items()}},
        origins={network: made_from(network) for network in names},
        loras=tuple(
            LoraEntry(lora.path.name, str(lora.path.absolute()), hashes[lora.path], lora.scale)
            for lora in checkpoint.loras
        ),
        calibration=None
        if calibration is None
        else CalibrationEntry(calibration.sha256, calibration.settings.to_json()),
    )
    if previous is not None:
        manifest = keep_plans(previous, output, manifest, folder)
    # What was verified is still the same bundle where nothing has changed.
    unchanged = previous is not None and replace(previous, verify=None) == manifest
    return previous if previous is not None and unchanged else manifest


class _Meter:
    """Adds up bytes for the caller's progress, those that threads of `hashes` have read with them."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0
        self.hashes: FileHashes | None = None
        self.stage = "its folder"

    def add(self, what: str, count: int) -> None:
        self.stage = what
        self.done += count
        if self.progress is not None:
            self.progress(what, self.done + (self.hashes.bytes_read if self.hashes else 0), self.total)


def _previous(output: Path) -> Manifest | None:
    """The manifest of the bundle to replace, None where nothing of it can be reused."""
    if not is_bundle(output):
        return None
    try:
        return read_manifest(output)
    except QwenImageError:
        return None  # of another schema version, or damaged: replaced all the same


def _copy_host_files(source: Path, folder: Path) -> Mapping[str, FileEntry]:
    """What the runtime reads besides networks, under the same names."""
    names = list(_COPIED_FILES)
    for name in _COPIED_FOLDERS:
        (folder / name).mkdir()
        names += [
            f"{name}/{path.name}"
            for path in sorted((source / name).iterdir())
            if path.is_file() and not path.name.startswith(".")
        ]
    for name in names:
        shutil.copyfile(source / name, folder / name)
    return {name: describe_file(folder / name) for name in names}


def check_checkpoint(checkpoint: Checkpoint, components: Collection[str] | None = None) -> None:
    """Check the tokenizer, the schedule, and name, shape and dtype of every tensor that `components` (all) read.

    Raises:
        QwenImageError: one of them is not what the runtime or a network needs.
    """
    load_tokenizer(checkpoint.folder)
    schedule_config(checkpoint)
    checkpoint.token_embeddings()
    for network in networks(selected(checkpoint) if components is None else components):
        read_tensors(checkpoint, network)
