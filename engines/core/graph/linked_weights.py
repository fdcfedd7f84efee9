"""Weight files that are symlinks out of the graph's folder, as in the hub's cache, which engines do not follow.

OpenVINO and ONNX Runtime refuse external data outside the graph's folder, wherever a link leads there. Hard links have
no such direction: in a temporary folder they cost no bytes. Copies are for weights that no hard link reaches.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError


@contextmanager
def weights_in_folder(component: str, model: Path, *, follows: Collection[Path] = ()) -> Iterator[Path]:
    """Yield a path of the graph `model` with its weight files in the same folder, to be read within the block.

    The path is `model` itself if no weight file is a link to another folder, else a copy of the graph in a temporary
    folder with hard links to the weights, or copies of those that are on another disk than most.

    Args:
        component: name of the component, for the error.
        model: graph file, with weight files beside it.
        follows: folders that the engine follows links into.

    Raises:
        QwenImageError: a weight file is a link to another folder, and can neither be hard-linked nor copied from there.
    """
    links = _links(model, {model.parent.resolve(), *follows})
    if not links:
        yield model
        return
    with _filled(component, model, links) as folder:
        yield Path(folder, model.name)


def _links(model: Path, folders: Collection[Path]) -> list[Path]:
    """Return the files beside a graph that are links to none of `folders`."""
    files = (path for path in model.parent.glob("*") if path.is_symlink() and path.suffix != ".onnx")
    return [path for path in files if path.is_file() and path.resolve().parent not in folders]


def _filled(component: str, model: Path, links: Sequence[Path]) -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a copy of the graph and the weights as hard links.

    The folder is on the system's disk, beside the graph, or beside the weights: a hard link stays on one disk. Weights
    on several disks, or on one without hard links, are copied there, as few bytes as can be.
    """
    beside = sorted({path.resolve().parent for path in links}, key=lambda place: -_bytes_in(place, links))
    fault: OSError | None = None
    for copies, places in ((False, (None, model.parent, *beside)), (True, (*beside, model.parent, None))):
        for place in places:
            try:
                return _fill(place, model, links, copies=copies)
            except OSError as error:
                fault = error
    assert fault is not None
    raise QwenImageError(
        f"{component}: {links[0]} is a link to {links[0].resolve().parent}, which this engine does not follow, and "
        f"that file can neither be hard-linked nor copied ({fault.strerror or fault}); copy the bundle with its links "
        "resolved: cp -rL BUNDLE COPY"
    ) from fault


def _fill(place: Path | None, model: Path, links: Sequence[Path], *, copies: bool) -> tempfile.TemporaryDirectory[str]:
    folder = tempfile.TemporaryDirectory(prefix=".weights-", dir=place, ignore_cleanup_errors=True)
    try:
        shutil.copyfile(model, Path(folder.name, model.name))
        for link in links:
            try:
                os.link(link.resolve(), Path(folder.name, link.name))
            except OSError:
                if not copies:
                    raise
                shutil.copyfile(link, Path(folder.name, link.name))
    except BaseException:
        folder.cleanup()
        raise
    return folder


def _bytes_in(folder: Path, links: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in links if path.resolve().parent == folder)
