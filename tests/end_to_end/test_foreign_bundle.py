"""Bundles whose hashes fit, and whose weights are not where the graphs or the facts have them: refused when opened."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.bundle.files import describe_file
from tests.support.edit_manifest import edit_manifest

FILE = "vae/weights.safetensors"
WEIGHT, OTHER = "decoder.conv_in.weight", "decoder.conv_in.bias"

Header = dict[str, Any]


@pytest.fixture
def bundle(exported: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported(), tmp_path / "bundle"))


def change_header(bundle: Path, change: Callable[[Header], object]) -> None:
    """Change the header of a weight file, which moves what is behind it, and give the manifest its hashes."""
    path = bundle / FILE
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.unlink()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])
    entry = describe_file(path)
    stated = {"bytes": entry.bytes, "sha256": entry.sha256, "header_sha256": entry.header_sha256}
    edit_manifest(bundle, lambda document: document["files"][FILE].update(stated))


def swap(header: Header) -> None:
    names = [name for name, entry in header.items() if entry.get("shape") == header[OTHER]["shape"]]
    header[names[0]], header[names[1]] = header[names[1]], header[names[0]]


CHANGES: dict[str, tuple[Callable[[Header], object], str]] = {
    "longer": (lambda header: header["__metadata__"].update(note="x" * 64), "whose header has"),
    "another shape": (lambda header: header[WEIGHT]["shape"].reverse(), "whose header has"),
    "names exchanged": (swap, "whose header has"),
    "a gap": (lambda header: header.pop(WEIGHT), "bad header"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_weights_that_are_elsewhere_are_refused(bundle: Path, name: str) -> None:
    Bundle.open(bundle)
    change, message = CHANGES[name]
    change_header(bundle, change)
    with pytest.raises(QwenImageError, match=message) as caught:
        Bundle.open(bundle)
    assert len(str(caught.value)) < 600 + 2 * len(str(bundle))


def test_the_table_of_positions_has_the_side_that_the_facts_state(bundle: Path) -> None:
    edit_manifest(bundle, lambda document: document["facts"]["vision"].update(position_side=4))
    with pytest.raises(QwenImageError, match=r"expected 16 rows as facts\.vision.position_side 4 has it"):
        Bundle.open(bundle)


def test_every_graph_is_checked_before_the_first_engine(bundle: Path) -> None:
    """The decoder runs last: with `--memory sequential`, minutes after the start."""
    path = bundle / "vae" / "decoder_up.onnx"
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data + b"\xca\x01\x00")  # an empty function
    entry = describe_file(path)
    stated = {"bytes": entry.bytes, "sha256": entry.sha256}
    edit_manifest(bundle, lambda document: document["files"]["vae/decoder_up.onnx"].update(stated))
    with pytest.raises(QwenImageError, match=r"vae_decoder_up: .* the model has the field 25"):
        Bundle.open(bundle)
