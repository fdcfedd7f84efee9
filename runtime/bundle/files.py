"""Checks of a bundle's files against its manifest: a quick check before every run, and the full check of `verify`.

The quick check reads sizes and hashes small files (graphs, configs, the tokenizer). Large files are weights; it hashes
only their safetensors header. A bundle of 33 GB is checked in milliseconds. The quick check does not detect a changed
weight; the full check does.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import leads_out, open_regular, regular_size
from qwen_image_engine.engines.core.graph.check import check_graph_file
from qwen_image_engine.engines.core.graph.weight_file import WeightFile
from qwen_image_engine.engines.plans.entry import PlanEntry
from qwen_image_engine.runtime.bundle.bound_lists import check_bound_weights
from qwen_image_engine.runtime.bundle.manifest import Manifest
from qwen_image_engine.runtime.bundle.manifest_entries import FileEntry
from qwen_image_engine.runtime.system.files import file_sha256
from qwen_image_engine.runtime.system.tensor_header import MAX_HEADER_BYTES, read_tensor_header
from qwen_image_engine.runtime.system.text import command_line

SMALL_FILE_BYTES = 8 << 20
_POSITIONS = "visual.pos_embed.weight"


@dataclass(frozen=True)
class FileFault:
    """A mismatch between a file and the manifest.

    Attributes:
        path: name of the file in the manifest.
        expected: SHA-256 in the manifest.
        found: SHA-256 of the file on disk; None if the file is missing.
    """

    path: str
    expected: str
    found: str | None


def check_files(folder: Path, manifest: Manifest, names: Iterable[str] | None = None) -> None:
    """Run the quick check of the files `names`, or of all files if `names` is None.

    Raises:
        QwenImageError: a file is missing, cannot be read or is no regular file; its size, the contents of a small file
            or the header of a large file do not match the manifest; or a file that holds no weights is a link out of
            the bundle.
    """
    for name in manifest.files if names is None else names:
        path, expected = folder / name, manifest.files[name]
        size = _size(folder, path, manifest)
        check_link(folder, name, manifest)
        if size != expected.bytes:
            raise _changed(folder, name, f"{size} bytes, expected {expected.bytes}", manifest)
        small = expected.bytes <= SMALL_FILE_BYTES
        if small and file_sha256(path) != expected.sha256:
            raise _changed(folder, name, "other contents than its sha256 says", manifest)
        if not small and expected.header_sha256 not in (None, header_sha256(path)):
            raise _changed(folder, name, "another header than its sha256 says", manifest)


class WeightHeaders(dict[str, WeightFile]):
    """The headers of a bundle's weight files by name, each read when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def __missing__(self, name: str) -> WeightFile:
        found = self[name] = WeightFile(read_tensor_header(self._folder / name))
        return found


def check_graphs(
    folder: Path,
    manifest: Manifest,
    components: Iterable[str] | None = None,
    headers: WeightHeaders | None = None,
) -> None:
    """Check the graphs of `components`, or all if `components` is None, before an engine reads them.

    A graph may name only the weight files that the manifest lists for its component, and only places where their
    headers have its tensors; see `check_graph_file`. `headers` are those that another check reads too.

    Raises:
        QwenImageError: a graph or a header cannot be read; a graph holds something that no export holds, names another
            file, or has a tensor where the file has another.
    """
    headers = WeightHeaders(folder) if headers is None else headers
    for component in manifest.components if components is None else components:
        entry = manifest.components[component]
        weights = {name: headers[name] for name in entry.weights}
        check_graph_file(component, folder / entry.model, entry.model, weights)


def check_bound_lists(folder: Path, manifest: Manifest) -> None:
    """Check the weights that plans take as inputs against the graphs, which `check_graphs` compares with the files.

    Raises:
        QwenImageError: a graph cannot be read, or has a weight of a plan's list elsewhere, in another form or not at
            all.
    """
    for component, plans in manifest.plans.items():
        for plan in {plan.bound: plan for plan in plans}.values():  # plans for several GPUs have one list
            rebuild = _rebuild_command(folder, plan)
            check_bound_weights(component, folder, manifest.components[component].model, plan.bound, rebuild)


def check_link(folder: Path, name: str, manifest: Manifest) -> None:
    """Raise if the file `name` is in a place outside the bundle to which no link may lead.

    Weights may be links to any place, because nothing of them is shown and the manifest states their size and hash.
    Other files may be links to the blobs of the hub's cache only, and no folder may be a link out of the bundle.

    Raises:
        QwenImageError: the file or its folder is a link out of the bundle.
    """
    path = folder / name
    if not leads_out(path, folder) or (name in manifest.weight_files and not leads_out(path.parent, folder)):
        return
    link = next(
        item for item in (*reversed(path.relative_to(folder).parents), Path(name)) if leads_out(folder / item, folder)
    )
    raise QwenImageError(
        f"{folder / link}: is a link out of the bundle, which only weights may be; get the bundle again, or copy it "
        f"with its links resolved if you made them: {command_line('cp', '-rL', folder, 'COPY')}"
    )


def verify_files(folder: Path, manifest: Manifest, progress: Callable[[int], None] | None = None) -> list[FileFault]:
    """Hash every file and return the mismatches. `progress` is called with the bytes of each block.

    Raises:
        QwenImageError: a file exists and cannot be read, or is a link to a place that `check_link` refuses.
    """
    faults = []
    for name, expected in manifest.files.items():
        path = folder / name
        check_link(folder, name, manifest)
        found = file_sha256(path, progress) if path.is_file() else None
        if found != expected.sha256:
            faults.append(FileFault(name, expected.sha256, found))
    return faults


def describe_file(path: Path, sha256: str | None = None) -> FileEntry:
    """Return the manifest's entry for the file at `path`. Compute the SHA-256 if `sha256` is None.

    Raises:
        QwenImageError: the file cannot be read.
    """
    header = header_sha256(path) if path.suffix == ".safetensors" else None
    return FileEntry(path.stat().st_size, sha256 or file_sha256(path), header)


def header_sha256(path: Path) -> str:
    """Return the SHA-256 of a safetensors file's header: 8 bytes of length, then that many bytes of JSON.

    Raises:
        QwenImageError: the file cannot be read.
    """
    try:
        with open_regular(path) as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            return hashlib.sha256(start + file.read(min(length, MAX_HEADER_BYTES))).hexdigest()
    except OSError as error:
        raise QwenImageError(f"{path}: cannot be read ({error.strerror or error})") from error


def check_tables(folder: Path, manifest: Manifest, headers: WeightHeaders | None = None) -> None:
    """Raise if a table is another in the header of its file than the manifest says: of token embeddings, of positions.

    `headers` are those that another check reads too.

    Raises:
        QwenImageError: a file cannot be read; there is no table of token embeddings of this dtype, shape and offset; or
            the table of the vision network's positions has another side.
    """
    headers = WeightHeaders(folder) if headers is None else headers
    entry = manifest.embeddings
    path = folder / entry.file
    found = headers[entry.file].at(entry.offset)
    wanted = (DTYPES[entry.dtype].safetensors, entry.shape, entry.offset)
    if found is None or (found.dtype, found.shape, found.offset) != wanted:
        raise QwenImageError(
            f"{path}: no tensor {entry.dtype} {entry.shape} at byte {entry.offset}, where the manifest has the token "
            f"embeddings; {export_advice(folder, manifest)}"
        )
    side = manifest.facts.vision.position_side
    for name in manifest.components["vision"].weights if "vision" in manifest.components else ():
        for tensor in headers[name]:
            if tensor.name.endswith(_POSITIONS) and tensor.shape[:1] != (side**2,):
                raise QwenImageError(
                    f"{folder / name}: {tensor.name} has the shape {list(tensor.shape)}, expected {side**2} rows as "
                    f"facts.vision.position_side {side} has it; {export_advice(folder, manifest)}"
                )


def _size(folder: Path, path: Path, manifest: Manifest) -> int:
    try:
        return regular_size(path)
    except OSError as error:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise QwenImageError(f"{path}: cannot be read ({error.strerror or error}); get the bundle again") from error
        if path.is_symlink():
            raise QwenImageError(
                f"{path}: is a link to {path.readlink()}, which is not there; bring that file back, or get the bundle "
                "again"
            ) from None
        raise _changed(folder, path.relative_to(folder).as_posix(), "missing", manifest) from None


def _changed(folder: Path, name: str, state: str, manifest: Manifest) -> QwenImageError:
    for plan in (plan for plans in manifest.plans.values() for plan in plans if name in plan.listed):
        return QwenImageError(f"{folder / name}: {state}; build it again with: {_rebuild_command(folder, plan)}")
    return QwenImageError(f"{folder / name}: {state}; {export_advice(folder, manifest)}")


def build_command(folder: Path, builder: str, compute_capabilities: Sequence[str]) -> str:
    """Return the command that builds a bundle's plans; without capabilities for the GPU of the machine."""
    words = ["--compute-capability", ",".join(compute_capabilities)] if compute_capabilities else []
    return command_line("qwen-image", "build", folder, "--engine", builder, *words)


def _rebuild_command(folder: Path, plan: PlanEntry) -> str:
    return build_command(folder, plan.builder, plan.compute_capabilities if plan.gpu is None else ())


def export_advice(folder: Path, manifest: Manifest) -> str:
    """Return the remedy for a bundle whose files are not what its manifest says."""
    again = f"export again with: {manifest.export_command(folder)}"
    if manifest.weights == "link":
        return f"its weights are the checkpoint's own files: see that those are whole, then {again}"
    return again
