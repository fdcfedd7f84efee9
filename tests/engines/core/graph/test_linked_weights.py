"""Bundles whose weight files are symlinks, as in the hub's cache: drawn by every CPU engine, and nothing is copied."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.graph.linked_weights import weights_in_folder
from qwen_image_engine.runtime.bundle.manifest import read_manifest

COMPONENT, WEIGHTS = "vae_decoder_mid", "weights.safetensors"


@pytest.fixture
def bundle(exported: Callable[..., Path]) -> Path:
    return exported(without=("vision",))


def linked(bundle: Path, folder: Path, layout: str) -> Path:
    """Return the graph in a folder of links: "hub" as huggingface_hub has it; "disk" for weights alone elsewhere."""
    (folder / "blobs").mkdir(parents=True)
    place = folder / "snapshots" / "revision"
    place.mkdir(parents=True)
    for number, file in enumerate(sorted((bundle / "vae").iterdir())):
        if layout == "disk" and file.suffix == ".onnx":
            shutil.copyfile(file, place / file.name)
            continue
        blob = folder / "blobs" / f"{number:064x}"
        shutil.copyfile(file, blob)
        (place / file.name).symlink_to(os.path.relpath(blob, place))
    return place / Path(read_manifest(bundle).components[COMPONENT].model).name


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("layout", ["hub", "disk"])
def test_engines_load_linked_weights(bundle: Path, tmp_path: Path, engine: str, layout: str) -> None:
    pytest.importorskip(engine)
    model = linked(bundle, tmp_path / "cache", layout)
    before = sorted(model.parent.iterdir())
    load_engine(engine, model, read_manifest(bundle).components[COMPONENT].contract, 1).close()
    assert sorted(model.parent.iterdir()) == before


def test_links_are_followed_without_a_copy(bundle: Path, tmp_path: Path) -> None:
    with weights_in_folder(COMPONENT, model := bundle / "vae" / "decoder_mid.onnx") as path:
        assert path == model
    model = linked(bundle, tmp_path / "cache", "hub")
    with weights_in_folder(COMPONENT, model, follows=[model.resolve().parent]) as path:
        assert path == model
    with weights_in_folder(COMPONENT, model) as path:
        assert (path.parent / WEIGHTS).samefile(model.parent / WEIGHTS)
        assert not (path.parent / WEIGHTS).is_symlink()
        assert path.read_bytes() == model.read_bytes()
    assert not path.parent.exists()


def test_weights_on_several_disks_are_copied_to_the_one_with_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two folders play disks, each with a file of weights, and the graph is on a third."""

    def link(source: Path, target: Path) -> None:
        if source.relative_to(tmp_path).parts[0] != target.relative_to(tmp_path).parts[0]:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        made.append(source.name)
        hard_link(source, target)

    made: list[str] = []
    hard_link = os.link
    for name in ("small", "large", "bundle", "system"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "system"))
    model = tmp_path / "bundle" / "graph.onnx"
    model.write_bytes(b"graph")
    for name in ("small", "large"):
        file = tmp_path / name / f"{name}.safetensors"
        file.write_bytes(b"weights" * len(name) ** (name == "large"))
        (model.parent / file.name).symlink_to(file)
    with weights_in_folder(COMPONENT, model) as path:
        assert path.is_relative_to(tmp_path / "large")
        assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == {
            file.name: file.read_bytes() for file in model.parent.iterdir()
        }
        assert (path.parent / "large.safetensors").samefile(tmp_path / "large" / "large.safetensors")
        assert not (path.parent / "small.safetensors").samefile(tmp_path / "small" / "small.safetensors")
    assert not path.parent.exists()


def test_where_links_cannot_be_followed_the_text_says_so(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    model = linked(bundle, tmp_path / "cache", "disk")
    before = sorted(model.parent.iterdir())
    monkeypatch.setattr(os, "link", refused)
    monkeypatch.setattr(shutil, "copyfile", refused)
    for engine in ("onnxruntime", "openvino"):
        pytest.importorskip(engine)
        with pytest.raises(
            QwenImageError, match=r"is a link to .*blobs, which this engine .*not permitted\); copy the bundle"
        ) as e:
            load_engine(engine, model, read_manifest(bundle).components[COMPONENT].contract, 1)
        assert "export" not in str(e.value)
    assert sorted(model.parent.iterdir()) == before
