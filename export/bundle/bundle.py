"""The export of a checkpoint to a bundle."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from qwen_image_engine.calibration.rules.recipe_file import QuantisationRecipe
from qwen_image_engine.engines.core.errors import QwenImageError, is_memory
from qwen_image_engine.engines.core.files import leads_out
from qwen_image_engine.export.bundle.cache_key import cache_key, tool
from qwen_image_engine.export.bundle.network_folder import NetworkFolder, reuse_network, write_network
from qwen_image_engine.export.bundle.request import ExportRequest
from qwen_image_engine.export.bundle.reuse_plans import keep_plans
from qwen_image_engine.export.bundle.staging import check_output, staged
from qwen_image_engine.export.estimate.sizes import NetworkEstimate, Weights, check_disk
from qwen_image_engine.export.targets import choose_target
from qwen_image_engine.export.weights.file_hashes import FileHashes
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint, Source
from qwen_image_engine.reference.components import dims
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.pipeline import model_facts
from qwen_image_engine.reference.storage.tensor_file import TensorInfo
from qwen_image_engine.runtime.bundle.files import describe_file
from qwen_image_engine.runtime.bundle.manifest import Manifest, is_bundle, read_manifest, write_manifest
from qwen_image_engine.runtime.bundle.manifest_entries import CalibrationEntry, CheckpointEntry, FileEntry, LoraEntry
from qwen_image_engine.runtime.system.files import with_home

Progress = Callable[[str, int, int], None]
"""Callback with the current stage, the number of bytes done so far, and the number of all bytes.

The stage is "graph of " and a component, "weights of " and a network, "audit of " and a component, or "checkpoint" if
there is nothing left to do but wait for the checkpoint's hashes.
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
    weights: Weights = "copy",
    calibration: str | Path | None = None,
    rules: str | Path | None = None,
    exclude: Sequence[str] = (),
    skip_blocks: Sequence[int] = (),
    fp8_attention: bool = False,
    merged_gates: bool = False,
    without: Sequence[str] = (),
    progress: Progress | None = None,
) -> Manifest:
    """Write the bundle `output` and return its manifest.

    The weights are never in memory: graphs are traced from fake weights, and the real weights are streamed in blocks
    ("copy") or hard-linked ("link"). `output` appears when it is complete. If it is a bundle already, the new bundle
    replaces it, and the folders of networks that have not changed are reused.

    Args:
        checkpoint: an opened checkpoint, or a source that `Checkpoint.open` takes: folder, hub name, diffusers
            pipeline.
        output: a new folder, or a bundle to replace.
        target: name of the target that the graphs are lowered for.
        precision: precision of weights and arithmetic; None for fp32 on a CPU and bf16 on a GPU.
        weights: "copy" for copies in the bundle's dtype, or "link" for hard links to the checkpoint's own files.
        calibration: folder that `calibrate` wrote, for static scales; None for a target without them.
        rules: recipe file whose rules replace the target's own; None for the target's own.
        exclude: glob patterns of linears that are not quantised.
        skip_blocks: blocks of the transformer that are not quantised.
        fp8_attention: whether the transformer's attention is FP8 too.
        merged_gates: whether TensorRT may make one product of the two of a gated MLP, with SiLU in a kernel of its own.
        without: names of optional components; a bundle without one of them takes no reference images.
        progress: callback for the progress of the export.

    Raises:
        UsageError: the table has no such target and precision, `weights` is neither "copy" nor "link", a pattern
            matches nothing, the transformer has no such block, `weights` is "link" for a checkpoint with merged
            adapters, or `without` names a component that is not optional.
        QwenImageError: the checkpoint is invalid, a weight is not finite or does not fit into the precision, `output`
            cannot be written or is no bundle, the weights cannot be hard-linked, or ONNX Runtime does not run a
            quantised linear as a product of integers.
    """
    chosen = choose_target(
        target,
        precision,
        weights=weights,
        rules=None if rules is None else QuantisationRecipe.read(Path(rules)),
        exclude=exclude,
        skip_blocks=skip_blocks,
        fp8_attention=fp8_attention,
        merged_gates=merged_gates,
    )
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = Checkpoint.open(checkpoint)
    request = ExportRequest.of(checkpoint, chosen, weights=weights, calibration=calibration, without=without)
    return write_bundle(request, output, progress)


def write_bundle(request: ExportRequest, output: str | Path, progress: Progress | None = None) -> Manifest:
    """Write the bundle of a request; see `export_bundle`.

    Raises:
        QwenImageError: `output` cannot be written or is no bundle, the weights cannot be hard-linked, disk or memory
            are too small, or ONNX Runtime does not run a quantised linear as a product of integers.
    """
    output = with_home(output).absolute()
    files = request.checkpoint.weight_files
    meter = _Meter(progress, sum(file.stat().st_size for file in files) + request.plan.bundle_bytes)
    try:
        check_output(output)
        previous = _previous(output)
        if previous is None:
            check_disk(request.plan, output)
        with (
            staged(output) as folder,
            FileHashes(files, lambda: meter.add("checkpoint", 0), _linked_tensors(request)) as hashes,
        ):
            meter.hashes = hashes
            manifest = _Writer(request, folder, output, previous, hashes, meter).write()
            write_manifest(folder, manifest)
    except OSError as error:
        raise QwenImageError(
            f"{output}: cannot be written ({error.strerror or error}) at {meter.stage}; "
            f"the whole bundle takes {request.plan.bundle_bytes} bytes"
        ) from error
    except (MemoryError, RuntimeError) as error:
        if not is_memory(error):
            raise
        raise QwenImageError(
            f"{output}: memory ran out at {meter.stage}; an export takes about {request.plan.export_memory_bytes} bytes"
        ) from error
    return manifest


def _linked_tensors(request: ExportRequest) -> list[TensorInfo]:
    """Return the tensors that the bundle reads from linked files. Those that are copied are checked as they stream."""
    if request.plan.weights != "link":
        return []
    read = [tensor for network in request.networks for tensor in read_tensors(request.checkpoint, network)]
    return [*read, request.checkpoint.token_embeddings()]


class _Meter:
    """A counter of bytes for the caller's progress; it includes the bytes that the threads of `hashes` have read."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0
        self.hashes: FileHashes | None = None
        self.stage = "its folder"

    def add(self, what: str, count: int) -> None:
        self.stage = what
        self.done += count
        if self.progress is not None:
            self.progress(what, self.done + (self.hashes.bytes_read if self.hashes else 0), self.total)


@dataclass(frozen=True)
class _Writer:
    """The export of a request into a staged folder.

    Attributes:
        request: the checked request.
        folder: the staged folder, empty.
        output: the folder that the staged one replaces; need not exist.
        previous: manifest of the bundle in `output`; None if nothing of that bundle can be reused.
        hashes: SHA-256 of the checkpoint's weight files, which threads are computing.
        meter: counter of the bytes.
    """

    request: ExportRequest
    folder: Path
    output: Path
    previous: Manifest | None
    hashes: FileHashes
    meter: _Meter

    def write(self) -> Manifest:
        """Write every file but the manifest, and return the manifest."""
        copied = _copy_host_files(self.request.checkpoint.folder, self.folder)
        new = self._new_networks()
        check_disk(replace(self.request.plan, networks=new), self.output)
        parts = [self._network(item, new=item in new) for item in self.request.plan.networks]
        manifest = self._manifest(copied, parts)
        if self.previous is None:
            return manifest
        manifest = keep_plans(self.previous, self.output, manifest, self.folder)
        # What was verified is still the same bundle where nothing has changed.
        return self.previous if replace(self.previous, verify=None) == manifest else manifest

    def _new_networks(self) -> tuple[NetworkEstimate, ...]:
        """Return the networks that cannot be reused from the previous bundle.

        Wait for the hashes only if the previous bundle may have one.
        """
        kept = self.previous.origins if self.previous is not None else {}
        return tuple(
            item
            for item in self.request.plan.networks
            if item.network not in kept or kept[item.network] != self._origin(item.network)
        )

    def _origin(self, network: str) -> str:
        request = self.request
        calibrated = request.calibration is not None and bool(request.quantised[network].layers)
        return cache_key(
            request.checkpoint,
            network,
            request.components(network),
            request.target,
            request.calibration.sha256 if request.calibration is not None and calibrated else None,
            request.plan.weights,
            self.hashes,
        )

    def _network(self, item: NetworkEstimate, *, new: bool) -> NetworkFolder:
        """Reuse a network's folder of the previous bundle if it is unchanged and whole, else write it."""
        request, network = self.request, item.network
        if self.previous is not None and not new:
            part = reuse_network(self.previous, self.output, network, self.folder, self.hashes)
            if part is not None:
                self.meter.add(f"weights of {network}", item.bundle_bytes)
                return part
        return write_network(
            request.checkpoint,
            request.components(network),
            request.target,
            request.quantised[network],
            request.plan.weights,
            self.folder,
            self.hashes,
            self.meter.add,
        )

    def _manifest(self, copied: Mapping[str, FileEntry], parts: Sequence[NetworkFolder]) -> Manifest:
        request, calibration = self.request, self.request.calibration
        (embeddings,) = (part.embeddings for part in parts if part.embeddings is not None)
        return Manifest(
            tool=tool(),
            target=request.target.name,
            precision=request.target.precision,
            weights=request.plan.weights,
            checkpoint=self._checkpoint(),
            dims=dims(request.checkpoint),
            facts=model_facts(request.checkpoint),
            embeddings=embeddings,
            components={name: entry for part in parts for name, entry in part.components.items()},
            files={**copied, **{name: entry for part in parts for name, entry in part.describe_files().items()}},
            origins={network: self._origin(network) for network in request.networks},
            loras=tuple(
                LoraEntry(lora.name, str(lora.path.absolute()), self.hashes[adapter.files[0]], lora.scale)
                for adapter in request.checkpoint.adapters
                for lora in (adapter.file,)
            ),
            calibration=None
            if calibration is None
            else CalibrationEntry(calibration.sha256, calibration.settings.to_json()),
        )

    def _checkpoint(self) -> CheckpointEntry:
        checkpoint = self.request.checkpoint
        single = checkpoint.transformer_file
        return CheckpointEntry(
            name=checkpoint.name,
            path=str(checkpoint.folder.resolve()),
            licence=checkpoint.licence(),
            config_sha256=checkpoint.config_sha256(),
            weights_sha256=checkpoint.combined_weights_sha256(self.hashes),
            transformer_file=None if single is None else str(single.absolute()),
            attention=checkpoint.attention,
            variant=checkpoint.variant,
        )


def _previous(output: Path) -> Manifest | None:
    """Return the manifest of the bundle to replace; None if nothing of that bundle can be reused."""
    if not is_bundle(output):
        return None
    try:
        return read_manifest(output)
    except QwenImageError:
        return None  # of another schema version, or damaged: replaced all the same


def _copy_host_files(source: Path, folder: Path) -> Mapping[str, FileEntry]:
    """Copy the files that the runtime reads besides networks, and return their manifest entries by name.

    Raises:
        QwenImageError: a file is a link out of the checkpoint and its hub cache.
    """
    names = list(_COPIED_FILES)
    for name in _COPIED_FOLDERS:
        (folder / name).mkdir()
        names += [
            f"{name}/{path.name}"
            for path in sorted((source / name).iterdir())
            if path.is_file() and not path.name.startswith(".")
        ]
    for name in names:
        if leads_out(source / name, source):
            raise QwenImageError(
                f"{source / name}: is a link out of the checkpoint, whose target is not copied into a bundle; put the "
                "file itself there"
            )
        shutil.copyfile(source / name, folder / name)
    return {name: describe_file(folder / name) for name in names}
