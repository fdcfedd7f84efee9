"""Opening checkpoints: tensors against safetensors' own reader, strict loading, names in the hub cache, and damage."""

import hashlib
import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_checkpoint import CONFIGURATIONS, TURBO_SIGMAS, load_text_encoder, load_transformer, load_vae
from safetensors.torch import load_file, save_file

from qwen_image_engine.engines.errors import QwenImageError
from qwen_image_engine.reference.checkpoint import Checkpoint
from qwen_image_engine.reference.component import LAYOUT
from qwen_image_engine.reference.hub_cache import hub_cache

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"dtype": "bfloat16", "vae_dtype": "float32", "max_shard_size": "500KB", "spelling": "transformers4"},
    {"dtype": "float16", "turbo": True},
]


@pytest.fixture
def copied(random_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a checkpoint that a test may damage."""

    def copy(**options: Any) -> Path:
        return shutil.copytree(random_checkpoint(**options), tmp_path / "model")

    return copy


def edit_json(path: Path, **changes: Any) -> None:
    """Set keys of a JSON file; `...` removes one."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def rewrite(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    """Change the tensors of a safetensors file."""
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


HOST_ONLY = {"norm.weight", "embed_tokens.weight"}


def parameter_shapes(module: torch.nn.Module, prefix: str) -> dict[str, tuple[int, ...]]:
    """Shapes of an oracle's parameters that our network has, without the stored prefix."""
    return {
        name.removeprefix(prefix): tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if name.startswith(prefix) and "time_conv" not in name and name.removeprefix(prefix) not in HOST_ONLY
    }


@pytest.mark.parametrize("options", VARIANTS)
@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_every_tensor_is_what_safetensors_reads(
    random_checkpoint: Callable[..., Path], name: str, options: dict[str, Any]
) -> None:
    folder = random_checkpoint(name, **options)
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.index["sample_sigmas"] == (list(TURBO_SIGMAS) if options.get("turbo") else None)
    assert checkpoint.scheduler["max_image_seq_len"] == 8192
    for component_name, component in checkpoint.components.items():
        expected: dict[str, torch.Tensor] = {}
        for file in sorted((folder / component_name).glob("*.safetensors")):
            expected |= load_file(file)
        assert component.files == tuple(sorted((folder / component_name).glob("*.safetensors")))
        assert component.tensors.keys() == expected.keys()
        assert component.parameters == sum(tensor.numel() for tensor in expected.values())
        assert component.nbytes == sum(tensor.nbytes for tensor in expected.values())
        assert sum(component.dtypes.values()) == component.parameters
        for key, tensor in expected.items():
            view = component.read(key)
            assert view.dtype == tensor.dtype
            assert torch.equal(view, tensor), key
            info = component.tensors[key]
            assert info.file.is_absolute()
            raw = np.fromfile(info.file, DTYPES[info.dtype], info.elements, offset=info.offset).reshape(info.shape)
            bits = tensor.view(torch.uint16) if info.dtype == "BF16" else tensor
            assert np.array_equal(raw, bits.numpy()), key
        first = next(iter(expected))
        assert torch.equal(component.read(first, copy=True), expected[first])
    if "max_shard_size" in options:
        assert len(checkpoint.components["transformer"].files) > 1
        assert len(checkpoint.components["text_encoder"].files) > 1


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_networks_load_strictly(random_checkpoint: Callable[..., Path], name: str) -> None:
    from qwen_image_engine.reference.text_encoder import TextEncoder
    from qwen_image_engine.reference.transformer import Transformer
    from qwen_image_engine.reference.vae import Vae

    folder = random_checkpoint(name)
    checkpoint = Checkpoint.open(folder)
    oracles = {
        "transformer": load_transformer(folder),
        "text_encoder": load_text_encoder(folder),
        "vae": load_vae(folder),
    }
    modules = {
        "transformer": Transformer(checkpoint.transformer),
        "text_encoder": TextEncoder(checkpoint.text_encoder),
        "vae": Vae(checkpoint.vae),
    }
    for component, module in modules.items():
        loaded = checkpoint.components[component]
        loaded.load_into(module)
        stored = oracles[component].state_dict()
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, stored[LAYOUT[component].prefix + key]), key
        loaded.load_into(module, torch.bfloat16)
        assert {tensor.dtype for tensor in module.state_dict().values()} == {torch.bfloat16}
    table = checkpoint.components["text_encoder"].read(checkpoint.token_embeddings().name)
    assert torch.equal(table, oracles["text_encoder"].state_dict()["model.language_model.embed_tokens.weight"])


def test_meta_module_becomes_views_of_the_file(random_checkpoint: Callable[..., Path]) -> None:
    component = Checkpoint.open(random_checkpoint()).components["transformer"]
    with torch.device("meta"):
        module = torch.nn.Module()
        for name, info in component.tensors.items():
            *parents, leaf = name.split(".")
            holder = module
            for parent in parents:
                if not hasattr(holder, parent):
                    holder.add_module(parent, torch.nn.Module())
                holder = getattr(holder, parent)
            holder.register_parameter(leaf, torch.nn.Parameter(torch.empty(info.shape)))
    component.load_into(module)
    weight = module.get_parameter("img_in.weight")
    assert weight.data_ptr() == component.read("img_in.weight").data_ptr()
    before = hashlib.sha256(component.files[0].read_bytes()).digest()
    with torch.no_grad():
        weight.zero_()
    assert hashlib.sha256(component.files[0].read_bytes()).digest() == before


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    """The format lets a header end at any byte; torch.frombuffer alone gives a misaligned float view."""
    from qwen_image_engine.reference.component import Component
    from qwen_image_engine.reference.tensor_file import read_header

    path = tmp_path / "odd.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    header += b" " * ((-len(header)) % 8 + 1)
    values = np.array([1.5, -2.0, 3.25], "<f4")
    path.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    tensors = read_header(path)
    assert tensors["a"].offset % 4
    component = Component("vae", tmp_path, LAYOUT["vae"], tensors, (path,))
    assert component.read("a").tolist() == values.tolist()
    assert component.read("a").data_ptr() % 4 == 0


def test_strict_match_counts_and_names(random_checkpoint: Callable[..., Path]) -> None:
    folder = random_checkpoint()
    checkpoint = Checkpoint.open(folder)
    for name, oracle in (("transformer", load_transformer(folder)), ("text_encoder", load_text_encoder(folder))):
        component = checkpoint.components[name]
        shapes = parameter_shapes(oracle, component.layout.prefix)
        matched = component.match(shapes)
        assert matched.keys() == shapes.keys()
        first, second, *rest = shapes
        wrong = {key: shapes[key] for key in rest} | {
            second: (1, *shapes[second]),
            **{f"new{i}": (1,) for i in range(5)},
        }
        prefix = component.layout.prefix
        with pytest.raises(QwenImageError) as raised:
            component.match(wrong)
        text = str(raised.value)
        assert f"5 missing ({prefix}new0, {prefix}new1, {prefix}new2, ...)" in text
        assert f"1 unexpected ({prefix}{first})" in text
        assert f"1 misshapen ({prefix}{second} is {shapes[second]}, expected {(1, *shapes[second])})" in text
        assert f"{len(wrong)} expected, {len(component.tensors)} stored" in text
    vae = checkpoint.components["vae"]
    assert any(vae.may_stay_unread(name) for name in vae.tensors)
    vae.match(parameter_shapes(load_vae(folder), ""))


def test_absent_tensor_and_other_dtypes(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    rewrite(path, lambda tensors: tensors.update({"img_in.weight": tensors["img_in.weight"].to(torch.float8_e4m3fn)}))
    component = Checkpoint.open(folder).components["transformer"]
    with pytest.raises(QwenImageError, match=r"'img_in\.weight' has dtype F8_E4M3, expected BF16, F16 or F32"):
        component.read("img_in.weight")
    with pytest.raises(QwenImageError, match="has dtype F8_E4M3"):
        component.match({name: info.shape for name, info in component.tensors.items()})
    with pytest.raises(QwenImageError, match=r"transformer: no tensor 'img_out\.weight' among its 27"):
        component.read("img_out.weight")


def test_embedding_table_of_another_shape(copied: Callable[..., Path]) -> None:
    folder = copied()
    name = "model.language_model.embed_tokens.weight"
    rewrite(
        folder / "text_encoder/model.safetensors", lambda tensors: tensors.update({name: tensors[name][1:].clone()})
    )
    with pytest.raises(QwenImageError, match=rf"{name} is F32 \(383, 64\), expected BF16, F16 or F32 \(384, 64\)"):
        Checkpoint.open(folder).token_embeddings()


# Opening by name


def fill_cache(cache: Path, folder: Path, name: str = "some-org/some.model") -> Path:
    """The hub's layout: blobs named by content, a snapshot of relative symlinks, refs/main."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123abcd"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copyfile(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path(*[".."] * (len(link.parent.relative_to(repository).parts))) / "blobs" / blob.name)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0123abcd")
    return repository


def test_by_name_from_the_hub_cache(
    random_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = random_checkpoint(dtype="bfloat16", max_shard_size="500KB")
    repository = fill_cache(tmp_path / "hub", folder)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    by_name = Checkpoint.open("some-org/some.model")
    by_path = Checkpoint.open(folder)
    assert by_name.name == "some-org/some.model"
    assert by_path.name == folder.name
    assert by_name.config_sha256() == by_path.config_sha256()
    assert by_name.weights_sha256() == by_path.weights_sha256()
    for info in by_name.components["transformer"].tensors.values():
        assert info.file.parent == (repository / "blobs").resolve()
        assert not info.file.is_symlink()
    assert by_name.token_embeddings() == by_path.token_embeddings()

    (repository / "refs/main").unlink()
    with pytest.raises(QwenImageError, match=r"no main revision.*snapshots: 0123abcd.*hf download some-org"):
        Checkpoint.open("some-org/some.model")
    with pytest.raises(QwenImageError, match=r"other/model: neither a folder nor .* hf download other/model"):
        Checkpoint.open("other/model")


def test_cache_folder_follows_the_hub_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub_cache() == tmp_path / ".cache/huggingface/hub"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert hub_cache() == tmp_path / "x/huggingface/hub"
    monkeypatch.setenv("HF_HOME", "~/h")
    assert hub_cache() == tmp_path / "h/hub"
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "c"))
    assert hub_cache() == tmp_path / "c"


# Hashes and licence


def test_hashes(copied: Callable[..., Path], random_checkpoint: Callable[..., Path]) -> None:
    original = Checkpoint.open(random_checkpoint(max_shard_size="500KB"))
    folder = copied(max_shard_size="500KB")
    same = Checkpoint.open(folder)
    seen: list[int] = []
    assert same.weights_sha256(seen.append) == original.weights_sha256()
    assert sum(seen) == sum(file.stat().st_size for part in same.components.values() for file in part.files)
    assert same.config_sha256() == original.config_sha256()
    assert Checkpoint.open(random_checkpoint()).config_sha256() == original.config_sha256()

    edit_json(folder / "scheduler/scheduler_config.json", shift=2.0)
    changed = Checkpoint.open(folder)
    assert changed.config_sha256() != original.config_sha256()
    assert changed.weights_sha256() == original.weights_sha256()
    with same.components["vae"].files[-1].open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))
    assert Checkpoint.open(folder).weights_sha256() != original.weights_sha256()


@pytest.mark.parametrize(
    ("readme", "licence_file", "expected"),
    [
        (
            "---\nlicense: other\nlicense_name: qwen-research\nlicense_link: LICENSE\n---\n# x\n",
            "Text",
            "qwen-research",
        ),
        ("---\r\ntags:\r\n- a\r\nlicense: apache-2.0\r\n---\r\n", None, "apache-2.0"),
        ('---\nlicense:\n- "mit"\n---\n', None, "mit"),
        ("# No front matter\nlicense: mit\n", "\n# Qwen RESEARCH LICENSE\n...", "Qwen RESEARCH LICENSE"),
        (None, "Some Licence\n", "Some Licence"),
        (None, "\n \n", "unknown"),
        (None, None, "unknown"),
    ],
)
def test_licence(copied: Callable[..., Path], readme: str | None, licence_file: str | None, expected: str) -> None:
    folder = copied(licence=None)
    if readme is not None:
        (folder / "README.md").write_bytes(readme.encode())
    if licence_file is not None:
        (folder / "LICENSE").write_text(licence_file)
    assert Checkpoint.open(folder).licence() == expected


# Damage


def damage_truncated(folder: Path) -> None:
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def damage_header_cut(folder: Path) -> None:
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def damage_empty(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"")


def damage_garbage(folder: Path) -> None:
    (folder / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"\xff" * 4096)


def damage_lfs_pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 14230250344\n"
    (folder / "text_encoder/model.safetensors").write_text(text)


def damage_header_text(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").write_bytes(struct.pack("<Q", 8) + b'{"a": 1,')


def damage_header_list(folder: Path) -> None:
    (folder / "text_encoder/model.safetensors").write_bytes(struct.pack("<Q", 8) + b"[1,2,3] ")


def write_header(path: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def damage_entry(folder: Path) -> None:
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", {"a": {"dtype": "F32", "shape": [1]}}, b"1234")


def damage_shape(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", {"a": entry}, b"1234")


def damage_gap(folder: Path) -> None:
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", {"a": entry}, b"12345678")


def damage_trailing(folder: Path) -> None:
    with (folder / "vae/diffusion_pytorch_model.safetensors").open("ab") as file:
        file.write(b"more")


def damage_dtype(folder: Path) -> None:
    entry = {"dtype": "F6_E3M2", "shape": [4], "data_offsets": [0, 3]}
    write_header(folder / "vae/diffusion_pytorch_model.safetensors", {"a": entry}, b"123")


DAMAGED_FILES = [
    (
        damage_truncated,
        r"transformer/diffusion_pytorch_model\.safetensors: truncated: it holds \d+ bytes, .* lists \d+",
    ),
    (damage_header_cut, r"vae/.*: truncated: it holds 1000 bytes, its header alone takes \d+"),
    (damage_empty, r"vae/.*: not a safetensors file: no header in its 0 bytes"),
    (damage_garbage, r"vae/.*: not a safetensors file: no header in its 4096 bytes"),
    (damage_lfs_pointer, r"text_encoder/model\.safetensors: is a git-lfs pointer.*git lfs pull"),
    (damage_header_text, r"not a safetensors file: its header is not JSON"),
    (damage_header_list, r"not a safetensors file: its header is not a JSON object"),
    (damage_entry, r"bad header: tensor 'a' has no sound dtype, shape and data_offsets"),
    (damage_shape, r"bad header: tensor 'a' takes 4 bytes, its shape 8"),
    (damage_gap, r"bad header: tensor 'a' starts at \d+, expected \d+"),
    (damage_trailing, r"vae/.*: it holds \d+ bytes, its header lists \d+"),
    (damage_dtype, r"tensor 'a' has dtype 'F6_E3M2', expected BF16, F16 or F32"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED_FILES, ids=lambda value: getattr(value, "__name__", ""))
def test_damaged_weight_file(copied: Callable[..., Path], damage: Callable[[Path], None], message: str) -> None:
    folder = copied()
    damage(folder)
    with pytest.raises(QwenImageError, match=message) as raised:
        Checkpoint.open(folder)
    assert "\n" not in str(raised.value)


def test_damaged_shards(copied: Callable[..., Path]) -> None:
    folder = copied(max_shard_size="500KB")
    part = folder / "text_encoder"
    index = part / "model.safetensors.index.json"
    weight_map: dict[str, str] = json.loads(index.read_text())["weight_map"]
    name, shard = next(iter(weight_map.items()))
    total = len(set(weight_map.values()))

    def refused(message: str) -> None:
        with pytest.raises(QwenImageError, match=message):
            Checkpoint.open(folder)

    edit_json(index, weight_map=weight_map | {"extra.weight": shard})
    refused(rf"model\.safetensors\.index\.json: does not agree with {shard}: tensor 'extra\.weight' is absent from it")
    edit_json(index, weight_map={key: file for key, file in weight_map.items() if key != name})
    refused(rf"does not agree with {shard}: tensor '{name}' is stored but not listed there")
    edit_json(index, weight_map=weight_map | {name: "../model_index.json"})
    refused(r"names the file '\.\./model_index\.json', expected one in the same folder")
    edit_json(index, weight_map=...)
    refused(r"no 'weight_map' of tensor names to files")
    index.write_text("{")
    refused(r"model\.safetensors\.index\.json: not JSON")
    index.write_text(json.dumps({"weight_map": weight_map}))
    (part / shard).rename(part / "model.safetensors")
    refused(r"holds both model\.safetensors and model\.safetensors\.index\.json")
    (part / "model.safetensors").unlink()
    refused(rf"text_encoder: 1 of {total} shards missing: {shard}")
    index.unlink()
    refused(r"text_encoder: no weights, expected model\.safetensors or .*\(found model-0000\d-of-")


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae", "scheduler", "processor"])
def test_missing_folder(copied: Callable[..., Path], part: str) -> None:
    folder = copied()
    shutil.rmtree(folder / part)
    with pytest.raises(QwenImageError, match=rf"incomplete: no folder {part}/$"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "file",
    ["transformer/config.json", "text_encoder/config.json", "vae/config.json", "scheduler/scheduler_config.json"],
)
def test_missing_or_broken_config(copied: Callable[..., Path], file: str) -> None:
    folder = copied()
    (folder / file).write_text("[]")
    with pytest.raises(QwenImageError, match=rf"{file}: holds a list, expected a JSON object"):
        Checkpoint.open(folder)
    (folder / file).write_bytes(b"\xff{}")
    with pytest.raises(QwenImageError, match=rf"{file}: not JSON"):
        Checkpoint.open(folder)
    (folder / file).unlink()
    with pytest.raises(QwenImageError, match=rf"{file}: cannot be read .*incomplete"):
        Checkpoint.open(folder)


def test_another_architecture(copied: Callable[..., Path]) -> None:
    folder = copied()
    index = folder / "model_index.json"
    edit_json(index, transformer=["diffusers", "QwenImageTransformer2DModel"])
    with pytest.raises(QwenImageError, match=r"key 'transformer' is .*QwenImageTransformer2DModel.*, expected \["):
        Checkpoint.open(folder)
    edit_json(index, _class_name="QwenImagePipeline")
    with pytest.raises(QwenImageError, match="'_class_name' is 'QwenImagePipeline', expected 'QwenImage21Pipeline'"):
        Checkpoint.open(folder)
    index.unlink()
    with pytest.raises(QwenImageError, match=r"no model_index\.json, expected a checkpoint in the diffusers layout"):
        Checkpoint.open(folder)


def test_components_of_two_models(copied: Callable[..., Path], random_checkpoint: Callable[..., Path]) -> None:
    folder = copied()
    shutil.rmtree(folder / "vae")
    shutil.copytree(random_checkpoint("odd") / "vae", folder / "vae")
    with pytest.raises(QwenImageError, match="'in_channels' is 16, expected 12, the VAE's z_dim"):
        Checkpoint.open(folder)


def test_no_such_path_and_single_file(tmp_path: Path) -> None:
    with pytest.raises(QwenImageError, match="does not exist, expected a folder"):
        Checkpoint.open(tmp_path / "nothing")
    with pytest.raises(QwenImageError, match="does not exist, expected a folder"):
        Checkpoint.open("nothing")
    single = tmp_path / "model.safetensors"
    single.write_bytes(b"")
    with pytest.raises(QwenImageError, match=r"is a single file, expected a folder.*not supported yet"):
        Checkpoint.open(single)


def test_only_bin_weights(copied: Callable[..., Path]) -> None:
    folder = copied()
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".bin"))
    with pytest.raises(QwenImageError, match=r"vae: no weights, expected .* \(found diffusion_pytorch_model\.bin\)"):
        Checkpoint.open(folder)


# Memory


def test_opening_a_large_checkpoint_reads_headers_only(copied: Callable[..., Path]) -> None:
    """A sparse 40 GB weight file: opening it takes no memory for its bytes, and no torch."""
    folder = copied()
    path = folder / "transformer/diffusion_pytorch_model.safetensors"
    size = 40 << 30
    entry = {"dtype": "BF16", "shape": [size // 2], "data_offsets": [0, size]}
    write_header(path, {"img_in.weight": entry}, b"")
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size + size)
    script = (
        "import resource, sys\n"
        "from qwen_image_engine.reference.checkpoint import Checkpoint\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(Checkpoint.open(sys.argv[1]).components['transformer'].nbytes)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, folder], capture_output=True, text=True, check=True)
    nbytes, grown_kib, with_torch = done.stdout.split()
    assert int(nbytes) == size
    assert int(grown_kib) < 32 * 1024  # headers and tables of three small components; the file is 40 GB
    assert with_torch == "False"
