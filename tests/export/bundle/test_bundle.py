"""The bundle: linked and copied weights, any dtype and sharding, reuse, and nothing left of an export that fails."""

import errno
import functools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.engine import Array
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.export.bundle import network_folder
from qwen_image_engine.export.bundle.bundle import export_bundle
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.bundle.files import check_files, verify_files
from qwen_image_engine.runtime.bundle.manifest import Manifest, read_manifest

Checkpoints = Callable[..., Path]
Bundles = Callable[[str], tuple[Path, Path]]

WITHOUT = ("vision",)
"""Leaves out half of a bundle's nodes, in tests of what happens to any network."""


@pytest.fixture(scope="module")
def linked(random_checkpoint: Checkpoints, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`linked(dtype) -> Path`: the linked bundle of a sharded checkpoint, of all networks in bfloat16; read-only."""

    @functools.cache
    def bundle(dtype: str) -> Path:
        folder = tmp_path_factory.mktemp("linked") / dtype
        checkpoint = random_checkpoint("narrow", dtype=dtype, max_shard_size="500KB")
        export_bundle(checkpoint, folder, weights="link", without=() if dtype == "bfloat16" else WITHOUT)
        return folder

    return bundle


def run_step(folder: Path, random_inputs: Callable[..., dict[str, Array]]) -> Array:
    entry = read_manifest(folder).components["step"]
    engine = load_engine("onnxruntime", folder / entry.model, entry.contract)
    return engine.run(random_inputs(entry.contract, batch=2, prefix=3, tokens=6))["velocity"]


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def forbid_tracing(monkeypatch: pytest.MonkeyPatch, *components: str) -> None:
    real = network_folder.trace

    def guarded(checkpoint: Checkpoint, component: str, dtype: torch.dtype) -> object:
        assert component not in components, f"{component} was exported again"
        return real(checkpoint, component, dtype)

    monkeypatch.setattr(network_folder, "trace", guarded)


def test_manifest_lists_every_file_with_its_hash(bundle: Bundles) -> None:
    checkpoint, folder = bundle("narrow")
    manifest = read_manifest(folder)
    assert files_below(folder) == {*manifest.files, "manifest.json"}
    check_files(folder, manifest)
    assert verify_files(folder, manifest) == []
    opened = Checkpoint.open(checkpoint)
    assert manifest.checkpoint.weights_sha256 == opened.weights_sha256()
    assert manifest.checkpoint.config_sha256 == opened.config_sha256()
    assert manifest.checkpoint.licence == "random-weights"
    assert Path(manifest.checkpoint.path) == checkpoint.resolve()


def test_copied_weights_are_a_safetensors_file_of_the_checkpoints_tensors(bundle: Bundles) -> None:
    checkpoint, folder = bundle("narrow")
    copied = load_file(folder / "transformer" / "weights.safetensors")
    stored = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    assert copied.keys() == stored.keys()
    assert all(torch.equal(copied[name], stored[name]) for name in stored)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_linked_and_copied_bundles_of_sharded_half_precision_agree(
    random_checkpoint: Checkpoints,
    random_inputs: Callable[..., dict[str, Array]],
    linked: Callable[[str], Path],
    tmp_path: Path,
    dtype: str,
) -> None:
    checkpoint, copied = random_checkpoint("narrow", dtype=dtype, max_shard_size="500KB"), tmp_path / "copied"
    before = {path: path.stat().st_mtime_ns for path in checkpoint.rglob("*") if path.is_file()}
    links = linked(dtype)
    export_bundle(checkpoint, copied, weights="copy", without=WITHOUT)
    assert before == {path: path.stat().st_mtime_ns for path in before}
    # Both convert exactly, so not a bit may differ.
    assert np.array_equal(run_step(links, random_inputs), run_step(copied, random_inputs))
    shards = list((links / "transformer").glob("*.safetensors"))
    assert len(shards) > 1
    assert all(shard.samefile(checkpoint / "transformer" / shard.name) for shard in shards)
    with safe_open(copied / "transformer" / "weights.safetensors", "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float32}  # noqa: SIM118
    opened = Checkpoint.open(checkpoint)
    table = opened.components["text_encoder"].read(opened.token_embeddings().name)
    for folder in (links, copied):
        assert verify_files(folder, read_manifest(folder)) == []
        assert stored_table(folder).equal(table)


def stored_table(folder: Path) -> torch.Tensor:
    entry = read_manifest(folder).embeddings
    assert (folder / entry.file).is_file()
    rows, hidden = entry.shape
    data = bytearray((folder / entry.file).read_bytes())
    dtype: torch.dtype = getattr(torch, entry.dtype)
    return torch.frombuffer(data, dtype=dtype, count=rows * hidden, offset=entry.offset).reshape(rows, hidden)


def test_linked_graphs_are_sound_with_their_weights_as_inputs(linked: Callable[[str], Path]) -> None:
    folder = linked("bfloat16")
    for name in (entry.model for entry in read_manifest(folder).components.values()):
        model = onnx.load(str(folder / name), load_external_data=False)
        # The checker refuses hard links; weights as inputs leave it the graph.
        external = [item for item in model.graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL]
        assert external
        for item in external:
            model.graph.initializer.remove(item)
            model.graph.input.append(onnx.helper.make_tensor_value_info(item.name, item.data_type, item.dims))
        onnx.checker.check_model(model)


def test_a_float32_vae_is_linked_and_cast_in_the_graph_of_a_bf16_bundle(
    random_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    checkpoint, folder = random_checkpoint("narrow", dtype="bfloat16", vae_dtype="float32"), tmp_path / "linked"
    export_bundle(checkpoint, folder, target="tensorrt", precision="bf16", weights="link")
    for path in folder.rglob("*.safetensors"):
        source = "text_encoder" if path.parent.name == "vision" else path.parent.name
        assert path.samefile(checkpoint / source / path.name)
    for name in (entry.model for entry in read_manifest(folder).components.values()):
        graph = onnx.load(str(folder / name), load_external_data=False).graph
        wanted = onnx.TensorProto.FLOAT if name.startswith("vae") else onnx.TensorProto.BFLOAT16
        weights = {item.name for item in graph.initializer if item.data_location == onnx.TensorProto.EXTERNAL}
        assert weights
        assert {item.data_type for item in graph.initializer if item.name in weights} == {wanted}
        if name.startswith("vae"):
            readers = [node for node in graph.node if weights & set(node.input)]
            assert {node.op_type for node in readers} == {"Cast"}
            assert {node.attribute[0].i for node in readers} == {onnx.TensorProto.BFLOAT16}
            assert len(readers) == len(weights)


def test_links_go_past_the_symlinks_of_a_hub_snapshot(random_checkpoint: Checkpoints, tmp_path: Path) -> None:
    source = random_checkpoint("narrow")
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "revision"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in source.rglob("*") if path.is_file())):
        blob = blobs / str(number)
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    manifest = export_bundle(snapshot, tmp_path / "bundle", weights="link", without=WITHOUT)
    for name in manifest.files:
        path = tmp_path / "bundle" / name
        assert path.is_file()
        assert not path.is_symlink()


def test_no_hard_links_is_an_error_that_names_the_way_out(
    random_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_filesystem(source: object, target: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), None, str(target))

    monkeypatch.setattr(os, "link", other_filesystem)
    with pytest.raises(QwenImageError, match="--weights copy"):
        export_bundle(random_checkpoint("narrow"), tmp_path / "bundle", weights="link")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("after_calls", [0, 3, 8])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_export_leaves_nothing(
    random_checkpoint: Checkpoints, tmp_path: Path, after_calls: int, kind: type[BaseException]
) -> None:
    calls = 0

    def interrupt(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += 1
        if calls > after_calls:
            raise kind

    with pytest.raises(kind):
        export_bundle(random_checkpoint("narrow"), tmp_path / "new" / "bundle", progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_export_keeps_the_bundle_that_was_there(
    bundle: Bundles, random_checkpoint: Checkpoints, tmp_path: Path
) -> None:
    output = tmp_path / "bundle"
    shutil.copytree(bundle("narrow")[1], output)

    def interrupt(what: str, done: int, total: int) -> None:
        if what == "weights of vae":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_bundle(random_checkpoint("narrow", dtype="bfloat16"), output, without=WITHOUT, progress=interrupt)
    assert verify_files(output, read_manifest(output)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_progress_grows_to_its_total(random_checkpoint: Checkpoints, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    output = tmp_path / "bundle"
    export_bundle(random_checkpoint("narrow"), output, without=WITHOUT, progress=lambda *call: seen.append(call))
    done = [call[1] for call in seen]
    assert done == sorted(done)
    assert done[-1] == seen[-1][2]
    assert {"graph of step", "weights of transformer", "weights of vae"} <= {call[0] for call in seen}


def test_a_repeated_export_makes_nothing_again(
    bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, made = bundle("narrow")
    output = tmp_path / "bundle"
    shutil.copytree(made, output)
    forbid_tracing(monkeypatch, *network_folder.MODEL_FILES)
    assert export_bundle(checkpoint, output) == read_manifest(made) == read_manifest(output)
    assert verify_files(output, read_manifest(output)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_only_the_network_whose_weights_changed_is_exported_again(
    bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, made = bundle("narrow")
    checkpoint, output = tmp_path / "checkpoint", tmp_path / "bundle"
    shutil.copytree(source, checkpoint)
    shutil.copytree(made, output)
    file = checkpoint / "vae" / "diffusion_pytorch_model.safetensors"
    kept = file.stat()
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["quant_conv.bias"] += 1
    save_file(tensors, file, {"format": "pt"})
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))  # neither size nor time tells
    assert file.stat().st_size == kept.st_size
    forbid_tracing(monkeypatch, "text_encoder", "prefix", "step")
    export_bundle(checkpoint, output)
    assert load_file(output / "vae" / "weights.safetensors")["quant_conv.bias"].equal(tensors["quant_conv.bias"])


def test_a_damaged_file_is_not_reused(bundle: Bundles, tmp_path: Path) -> None:
    checkpoint, made = bundle("narrow")
    output = tmp_path / "bundle"
    shutil.copytree(made, output)
    file = output / "text_encoder" / "weights.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    manifest = read_manifest(output)
    check_files(output, manifest, ["model_index.json"])
    assert [fault.path for fault in verify_files(output, manifest)] == ["text_encoder/weights.safetensors"]
    export_bundle(checkpoint, output)
    assert verify_files(output, read_manifest(output)) == []


def test_another_precision_or_way_of_weights_is_not_reused(bundle: Bundles, tmp_path: Path) -> None:
    checkpoint, made = bundle("narrow")
    output = tmp_path / "bundle"
    shutil.copytree(made, output)
    export_bundle(checkpoint, output, weights="link", without=WITHOUT)
    assert read_manifest(output).weights == "link"
    assert not list(output.glob("*/weights.safetensors"))


def test_a_bundle_of_another_schema_is_replaced(bundle: Bundles, tmp_path: Path) -> None:
    checkpoint, made = bundle("narrow")
    output = tmp_path / "bundle"
    output.mkdir()
    manifest = json.loads((made / "manifest.json").read_text())
    (output / "manifest.json").write_text(json.dumps(manifest | {"schema": 0}))
    export_bundle(checkpoint, output, without=WITHOUT)
    assert isinstance(read_manifest(output), Manifest)


@pytest.mark.parametrize("there", ["file", "folder"])
def test_what_is_no_bundle_is_not_replaced(bundle: Bundles, tmp_path: Path, there: str) -> None:
    output = tmp_path / "mine"
    if there == "file":
        output.write_text("mine")
    else:
        output.mkdir()
        (output / "note.txt").write_text("mine")
    before = files_below(tmp_path)
    with pytest.raises(QwenImageError, match=r"mine: is a (file|folder)"):
        export_bundle(bundle("narrow")[0], output)
    assert files_below(tmp_path) == before


def test_an_output_that_cannot_be_written_is_an_error(bundle: Bundles, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QwenImageError, match="cannot be written"):
        export_bundle(bundle("narrow")[0], tmp_path / "file" / "bundle")
    assert files_below(tmp_path) == {"file"}


def test_a_full_disk_is_an_error_and_leaves_nothing(
    bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: object, target: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(QwenImageError, match="No space left"):
        export_bundle(bundle("narrow")[0], tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile_names_the_stage_and_what_was_needed(
    random_checkpoint: Checkpoints, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(write: object, block: memoryview) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("qwen_image_engine.export.weights.weight_file._write_all", full)
    with pytest.raises(
        QwenImageError, match=r"No space left on device\) at weights of text_encoder; the whole bundle takes \d+ bytes"
    ):
        export_bundle(random_checkpoint("narrow"), tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("target", "precision"), [("cpu", "fp8"), ("tpu", "fp32")])
def test_an_unknown_pair_names_the_known_ones(bundle: Bundles, tmp_path: Path, target: str, precision: str) -> None:
    with pytest.raises(UsageError, match="--target cpu --precision fp32"):
        export_bundle(bundle("narrow")[0], tmp_path / "bundle", target=target, precision=precision)
    assert list(tmp_path.iterdir()) == []


def test_an_exchange_that_the_filesystem_does_not_know_is_two_renames(
    bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, made = bundle("narrow")
    output = tmp_path / "bundle"
    shutil.copytree(made, output)
    monkeypatch.setattr("qwen_image_engine.export.bundle.staging._exchange", lambda one, other: False)
    export_bundle(checkpoint, output)
    assert verify_files(output, read_manifest(output)) == []
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_runs_out_names_the_stage_and_what_was_needed(
    bundle: Bundles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def full(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("qwen_image_engine.export.bundle.network_folder.place_weights", full)
    with pytest.raises(QwenImageError, match=r"memory ran out at weights of text_encoder; .* about \d+ bytes"):
        export_bundle(bundle("narrow")[0], tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["processor/chat_template.jinja", "model_index.json"])
def test_links_out_of_a_checkpoint_are_not_copied(
    random_checkpoint: Checkpoints, tmp_path: Path, output: Path, name: str
) -> None:
    checkpoint = shutil.copytree(random_checkpoint(), tmp_path / "checkpoint")
    secret = tmp_path / "secret"
    if (checkpoint / name).exists():
        shutil.move(checkpoint / name, secret)
    else:
        secret.write_text("secret")
    (checkpoint / name).symlink_to(secret)
    with pytest.raises(QwenImageError, match=rf"{name}: is a link out of the checkpoint"):
        export_bundle(checkpoint, output / "bundle")
    licence = checkpoint / "README.md"
    licence.unlink(missing_ok=True)
    (tmp_path / "other").write_text("---\nlicense: secret\n---\n")
    licence.symlink_to(tmp_path / "other")
    assert Checkpoint.open(checkpoint).licence() == "unknown"
