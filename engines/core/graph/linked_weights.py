"""Weight files that are symlinks out of the graph's folder, as in the hub's cache, which engines do not follow.

OpenVINO and ONNX Runtime refuse external data outside the graph's folder, wherever a link leads there. Hard links have
no such direction: in a temporary folder they cost no bytes.
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
    folder with hard links to the weights.

    Args:
        component: name of the component, for the error.
        model: graph file, with weight files beside it.
        follows: folders that the engine follows links into.

    Raises:
        QwenImageError: a weight file is a link to another folder, and cannot be hard-linked from there.
    """
    links = _links(model, {model.parent.resolve(), *follows})
    if not links:
        yield model
        return
    with _hard_linked(component, model, links) as folder:
        yield Path(folder, model.name)


def _links(model: Path, folders: Collection[Path]) -> list[Path]:
    """Return the files beside a graph that are links to none of `folders`."""
    files = (path for path in model.parent.glob("*") if path.is_symlink() and path.suffix != ".onnx")
    return [path for path in files if path.is_file() and path.resolve().parent not in folders]


def _hard_linked(component: str, model: Path, links: Sequence[Path]) -> tempfile.TemporaryDirectory[str]:
    """Return a folder with a copy of the graph and hard links to weights.

    The folder is on the system's disk, beside the graph, or beside the weights: a hard link stays on one disk.
    """
    fault: OSError | None = None
    for place in (None, model.parent, links[0].resolve().parent):
        try:
            folder = tempfile.TemporaryDirectory(prefix=".weights-", dir=place, ignore_cleanup_errors=True)
        except OSError as error:
            fault = error
            continue
        try:
            for link in links:
                os.link(link.resolve(), Path(folder.name, link.name))
            shutil.copyfile(model, Path(folder.name, model.name))
        except OSError as error:
            folder.cleanup()
            fault = error
            continue
        return folder
    assert fault is not None
    place = links[0].resolve().parent
    raise QwenImageError(
        f"{component}: {links[0]} is a link to {place}, which this engine does not follow, and that file cannot "
        f"be hard-linked ({fault.strerror or fault}); copy the bundle with its links resolved: "
        "cp -rL BUNDLE COPY"
    ) from fault
