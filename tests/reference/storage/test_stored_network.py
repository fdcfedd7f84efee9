"""Stored tensors of a network: against safetensors' own reader, and strict loading."""

import hashlib
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.storage.stored_network import LAYOUT
from qwen_image_engine.reference.storage.tensor_file import read_header
from tests.support.edit_checkpoint import edit_tensors
from tests.support.oracles import load_text_encoder, load_transformer, load_vae
from tests.support.random_checkpoint import TURBO_SIGMAS
from tests.support.random_configurations import CONFIGURATIONS

DTYPES = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"dtype": "bfloat16", "vae_dtype": "float32", "max_shard_size": "500KB", "spelling": "transformers4"},
    {"dtype": "float16", "turbo": True},
]

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
    from qwen_image_engine.reference.networks.text_encoder import TextEncoder
    from qwen_image_engine.reference.networks.transformer import Transformer
    from qwen_image_engine.reference.networks.vae import Vae
    from qwen_image_engine.reference.networks.vision import Vision

    folder = random_checkpoint(name)
    checkpoint = Checkpoint.open(folder)
    oracles = {
        "transformer": load_transformer(folder),
        "text_encoder": load_text_encoder(folder),
        "vae": load_vae(folder),
    }
    oracles["vision"] = oracles["text_encoder"]
    modules = {
        "transformer": Transformer(checkpoint.transformer),
        "text_encoder": TextEncoder(checkpoint.text_encoder),
        "vae": Vae(checkpoint.vae),
        "vision": Vision(checkpoint.vision),
    }
    for component, module in modules.items():
        loaded = checkpoint.stored(component)
        loaded.load_into(module)
        stored = oracles[component].state_dict()
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, stored[loaded.layout.prefix + key]), key
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
    from qwen_image_engine.reference.storage.stored_network import StoredNetwork
    from qwen_image_engine.reference.storage.tensor_file import read_header

    path = tmp_path / "odd.safetensors"
    header = json.dumps({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}}).encode()
    header += b" " * ((-len(header)) % 8 + 1)
    values = np.array([1.5, -2.0, 3.25], "<f4")
    path.write_bytes(struct.pack("<Q", len(header)) + header + values.tobytes())
    tensors = read_header(path)
    assert tensors["a"].offset % 4
    component = StoredNetwork("vae", tmp_path, LAYOUT["vae"], tensors, (path,))
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
    edit_tensors(path, lambda tensors: tensors.update({"img_in.weight": tensors["img_in.weight"].double()}))
    component = Checkpoint.open(folder).components["transformer"]
    with pytest.raises(QwenImageError, match=r"'img_in\.weight' has dtype F64, expected BF16, F16 or F32"):
        component.read("img_in.weight")
    with pytest.raises(QwenImageError, match="has dtype F64"):
        component.match({name: info.shape for name, info in component.tensors.items()})
    with pytest.raises(QwenImageError, match=r"transformer: no tensor 'img_out\.weight' among its 27"):
        component.read("img_out.weight")


def test_embedding_table_of_another_shape(copied: Callable[..., Path]) -> None:
    folder = copied()
    name = "model.language_model.embed_tokens.weight"
    edit_tensors(
        folder / "text_encoder/model.safetensors", lambda tensors: tensors.update({name: tensors[name][1:].clone()})
    )
    with pytest.raises(QwenImageError, match=rf"{name} is F32 \(383, 64\), expected BF16, F16 or F32 \(384, 64\)"):
        Checkpoint.open(folder).token_embeddings()


@pytest.mark.parametrize(
    "entry",
    [
        None,
        {},
        {"dtype": [], "shape": [1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [10**400], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [2**62] * 10_000, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, float("inf")]},
        {"dtype": "x" * 200_000, "shape": [1], "data_offsets": [0, 4]},
    ],
)
@pytest.mark.parametrize("name", ["weight", "n" * 200_000, "a\0b", ""])
def test_headers_are_refused_in_one_short_line(tmp_path: Path, entry: object, name: str) -> None:
    header = json.dumps({name: entry}).encode()
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(QwenImageError) as raised:
        read_header(tmp_path / "x.safetensors")
    assert len(str(raised.value)) < 1000
