"""The checkpoint that bundles are compared with, which must be the one that they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.export.targets import TARGETS
from qwen_image_engine.export.weights.file_hashes import finite_sha256
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint, Source
from qwen_image_engine.reference.checkpoint.recorded import check_recorded, open_recorded
from qwen_image_engine.reference.load import read_tensors
from qwen_image_engine.reference.lora.file import LoraFile
from qwen_image_engine.reference.pipeline import model_facts
from qwen_image_engine.reference.storage.finite import NotFiniteError
from qwen_image_engine.runtime.bundle.files import (
    WeightHeaders,
    check_bound_lists,
    check_graphs,
    check_tables,
    export_advice,
    verify_files,
)
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest
from qwen_image_engine.runtime.system.progress import ProgressBar


def named_bundles(bundles: Sequence[str | Path]) -> dict[Path, Manifest]:
    """Return the manifests of bundles, which can be compared in one run, by the bundles' folders.

    Raises:
        UsageError: no bundle is named, or a bundle is named twice.
        QwenImageError: a manifest cannot be read, has no thresholds, or names another checkpoint than the first
            manifest.
    """
    manifests = {bundle: read_manifest(bundle) for bundle in _folders(bundles)}
    for bundle, manifest in manifests.items():
        if (manifest.target, manifest.precision) not in TARGETS:
            known = ", ".join(f"{target} {precision}" for target, precision in TARGETS)
            raise QwenImageError(
                f"{bundle}: no thresholds for {manifest.target!r} in precision {manifest.precision!r}; known: {known}"
            )
    check_same_checkpoint(manifests)
    return manifests


def _folders(bundles: Sequence[str | Path]) -> list[Path]:
    """Return the folders of bundles.

    Raises:
        UsageError: `bundles` is empty, is one name and no list, or names a bundle twice.
    """
    if isinstance(bundles, str | Path):
        raise UsageError(f"bundles {str(bundles)!r}: expected a list of folders; verify_bundle takes one")
    folders = list(map(Path, bundles))
    if not folders:
        raise UsageError("no bundles are given; name at least one")
    named: dict[Path, Path] = {}
    for folder in folders:
        earlier = named.setdefault(folder.resolve(), folder)
        if earlier is not folder:
            both = str(folder) if earlier == folder else f"{earlier}, also as {folder},"
            raise UsageError(f"the bundle {both} is named twice; name each once")
    return folders


def check_contents(bundle: Path, manifest: Manifest) -> None:
    """Check the hash of every file of a bundle, and then its graphs and tables as every opening does.

    Raises:
        QwenImageError: a file is missing, or differs from the manifest; a graph holds something that no export holds;
            a weight is not where its file has it; or the list of a plan's bound weights is another bundle's.
    """
    with ProgressBar("hashing the bundle", sum(file.bytes for file in manifest.files.values()), "bytes") as bar:
        faults = verify_files(bundle, manifest, bar.advance)
    if faults:
        named = [f"{fault.path} {'is missing' if fault.found is None else 'has changed'}" for fault in faults[:3]]
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise QwenImageError(
            f"{bundle}: {len(faults)} of {len(manifest.files)} files are not what its manifest says: "
            f"{', '.join(named)}{more}; {export_advice(bundle, manifest)}"
        )
    headers = WeightHeaders(bundle)
    check_graphs(bundle, manifest, headers=headers)
    check_tables(bundle, manifest, headers)
    check_bound_lists(bundle, manifest)


def check_same_checkpoint(manifests: Mapping[Path, Manifest]) -> None:
    """Raise if bundles were made from different checkpoints.

    One recording cannot be compared with bundles of several checkpoints.

    Raises:
        QwenImageError: the checkpoints of two bundles differ in configuration or weights.
    """
    (first, expected), *others = ((bundle, manifest.checkpoint) for bundle, manifest in manifests.items())
    for bundle, found in others:
        if (found.config_sha256, found.weights_sha256) != (expected.config_sha256, expected.weights_sha256):
            raise QwenImageError(
                f"{first} was made from {expected.name} in {expected.path} (weights {expected.weights_sha256[:12]}…), "
                f"{bundle} from {found.name} in {found.path} (weights {found.weights_sha256[:12]}…): one run takes "
                "bundles of one checkpoint; verify them apart"
            )


def open_checkpoint(
    bundle: Path,
    manifest: Manifest,
    named: Source | None,
    transformer_file: str | Path | None,
    loras: Sequence[LoraFile] | None,
    attention: str | None,
    variant: str | None,
) -> Checkpoint:
    """Open the checkpoint that a bundle was made from.

    The manifest says where the checkpoint was; an argument that is not None says where it is now.

    Raises:
        QwenImageError: the checkpoint is not there, or the bundle was made from another checkpoint or has other facts;
            or a weight that the bundle's components read is not finite in the checkpoint.
    """
    expected = manifest.checkpoint
    checkpoint = open_recorded(manifest, named, transformer_file, loras, attention, variant)
    advice = "name the right one with -m and --attention, or export again"
    check_recorded(bundle, checkpoint, "configuration", checkpoint.config_sha256(), expected.config_sha256, advice)
    _check_facts(bundle, manifest, checkpoint)
    weights = _weights_sha256(bundle, manifest, checkpoint)
    advice = "name the right one with -m, --variant, --transformer and --lora, or export again"
    check_recorded(bundle, checkpoint, "weights", weights, expected.weights_sha256, advice)
    return checkpoint


def _check_facts(bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> None:
    """Raise if the manifest has other facts than the checkpoint: its own hash of them is no proof.

    Raises:
        QwenImageError: a fact differs. The text names the first.
    """
    stated, facts = asdict(manifest.facts), asdict(model_facts(checkpoint))
    for name, value in facts.items():
        if stated[name] != value:
            raise QwenImageError(
                f"{bundle}: its manifest has the fact {name} {stated[name]}, its checkpoint {value}; "
                f"{export_advice(bundle, manifest)}"
            )


def _weights_sha256(bundle: Path, manifest: Manifest, checkpoint: Checkpoint) -> str:
    """Return the hash of the checkpoint's weights, and check in the same pass that what the bundle reads is finite.

    Raises:
        QwenImageError: a file cannot be read, or a weight is not finite; the text names the components that read it.
    """
    readers: dict[str, list[str]] = {}
    for name in manifest.components:
        readers.setdefault(COMPONENTS[name].network, []).append(name)
    network_of = {item.stored: network for network in readers for item in read_tensors(checkpoint, network)}
    total = sum(file.stat().st_size for file in checkpoint.weight_files)
    with ProgressBar("hashing the checkpoint", total, "bytes") as bar:
        try:
            hashes = {file: finite_sha256(file, network_of, bar.advance) for file in checkpoint.weight_files}
        except NotFiniteError as error:
            names = ", ".join(readers[network_of[error.source]])
            raise QwenImageError(f"{error}; of {bundle}, {names} compute with it") from error
    return checkpoint.combined_weights_sha256(hashes)
