"""Adapters as their writers write them: the spelling, the origin of the scale, dtypes, and kinds that are no LoRA."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.lora.adapter import Adapter
from qwen_image_engine.reference.lora.file import LoraFile
from tests.support.edit_checkpoint import edit_tensors
from tests.support.lora import factors, flat, weights, write_lora

KOHYA = (".lora_down.weight", ".lora_up.weight")


def opened(checkpoint: Path, path: Path) -> tuple[Adapter, dict[str, torch.Tensor]]:
    found = Checkpoint.open(checkpoint, loras=[LoraFile(path)])
    component = found.components["transformer"]
    return found.adapters[0], {name: component.read(name) for name in component.tensors}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


WRITERS: dict[str, tuple[Callable[[str], str], tuple[str, str]]] = {
    "PEFT": ("base_model.model.{}".format, (".lora_A.weight", ".lora_B.weight")),
    "ComfyUI": ("diffusion_model.{}".format, (".lora_A.weight", ".lora_B.weight")),
    "no prefix": ("{}".format, KOHYA),
    "kohya": (flat, KOHYA),
    "LyCORIS": (lambda linear: "lycoris_" + linear.replace(".", "_"), KOHYA),
    "OneTrainer": (lambda linear: "lora_transformer_" + linear.replace(".", "_"), KOHYA),
}


@pytest.mark.parametrize("writer", list(WRITERS))
def test_writers(random_checkpoint: Callable[..., Path], tmp_path: Path, writer: str) -> None:
    folder, (name, endings) = random_checkpoint(), WRITERS[writer]
    updates = factors(folder)
    _, expected = opened(folder, write_lora(tmp_path / "plain.safetensors", updates, alpha=6.0))
    path = write_lora(tmp_path / "style.safetensors", updates, name=name, endings=endings, alpha=6.0)
    adapter, found = opened(folder, path)
    assert same(found, expected)
    assert (adapter.writers, adapter.ranks, adapter.factors) == ((writer,), (4,), (1.5,))
    assert (adapter.scale_from, adapter.notes) == ("by its alphas", ())


def test_unstated_scale_is_said(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_checkpoint()
    path = write_lora(tmp_path / "style.safetensors", factors(folder), name=flat, endings=KOHYA)
    tensors = load_file(path)
    adapter, _ = opened(folder, path)
    assert (adapter.factors, adapter.scale_from) == ((1.0,), "nowhere: alpha is taken as the rank")
    assert adapter.notes[0].startswith(f"{path}: states no alpha: merged at 1.0 times the given scale, as diffusers")
    save_file(tensors, path, {"ss_network_dim": "4", "ss_network_alpha": "2.0"})
    assert "states no alpha, and kohya's metadata has 2.0: merged at 1.0" in opened(folder, path)[0].notes[0]
    alpha = {f"{flat('transformer_blocks.0.attn.to_q')}.alpha": torch.tensor(2.0)}
    save_file(tensors | alpha, path)
    adapter, _ = opened(folder, path)
    assert (adapter.factors, adapter.unscaled) == ((0.5, 1.0), 13)
    assert "states no alpha for 13 of its linears: merged at 1.0" in adapter.notes[0]


TEXT_ENCODER_KEYS = (
    "lora_te_model_layers_0_mlp_up_proj.lora_down.weight",
    "lora_te1_x.alpha",
    "text_encoder.layers.0.q_proj.lora_A.weight",
    "text_encoder_2.layers.0.q_proj.lokr_w1",
    "text_encoders.qwen25_7b.transformer.model.layers.0.mlp.up_proj.lora_A.weight",
    "lycoris_text_encoder_layers_0_q_proj.lora_down.weight",
)


def test_text_encoder_is_left_out_and_said(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = random_checkpoint()
    path = write_lora(tmp_path / "style.safetensors", factors(folder), alpha=4.0)
    _, expected = opened(folder, path)
    foreign = {key: torch.ones(4, 8) for key in TEXT_ENCODER_KEYS}
    edit_tensors(path, lambda tensors: tensors.update(foreign))
    adapter, found = opened(folder, path)
    assert same(found, expected)
    (note,) = adapter.notes
    assert note == f"{path}: 6 of its keys are of a text encoder and are left out; the transformer's are merged"
    save_file(foreign, path)
    with pytest.raises(QwenImageError, match="all 6 keys are of a text encoder, expected low-rank updates of the"):
        opened(folder, path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.float64, torch.float16])
def test_dtypes(random_checkpoint: Callable[..., Path], tmp_path: Path, dtype: torch.dtype) -> None:
    folder, stored = random_checkpoint(), weights(random_checkpoint())
    # A gate and an up projection that are stacked: rows of a factor are taken from its bytes.
    block, one = "transformer_blocks.1.img_mlp", torch.tensor(2.0, dtype=dtype)
    (down, gate), (_, up) = factors(folder, [f"{block}.gate_layer", f"{block}.proj"]).values()
    stacked = torch.cat([gate, up]).to(dtype)
    path = tmp_path / "style.safetensors"
    key = f"diffusion_model.{block}.gate_up"
    save_file({f"{key}.lora_A.weight": down.to(dtype), f"{key}.lora_B.weight": stacked, f"{key}.alpha": one}, path)
    adapter, found = opened(folder, path)
    assert adapter.factors == (0.5,)
    product = stacked.float() @ down.to(dtype).float()
    for name, rows in zip(("gate_layer", "proj"), product.chunk(2), strict=True):
        weight = f"{block}.{name}.weight"
        torch.testing.assert_close(found[weight], stored[weight] + 0.5 * rows, rtol=1e-6, atol=1e-7)


def test_folder_and_its_scale(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "style"
    folder.mkdir()
    with pytest.raises(QwenImageError, match=r"style: is a folder with neither adapter_model\.safetensors nor"):
        opened(random_checkpoint(), folder)
    path = write_lora(folder / "pytorch_lora_weights.safetensors", factors(random_checkpoint()), alpha=4.0)
    assert same(opened(random_checkpoint(), folder)[1], opened(random_checkpoint(), path)[1])
    lora = LoraFile.parse(f"{folder}:0.5")
    assert (lora, lora.described) == (LoraFile(folder, 0.5), "style:0.5")
    write_lora(folder / "adapter_model.safetensors", factors(random_checkpoint()))
    with pytest.raises(QwenImageError, match=r"is a folder with both .* and .*: name one of them"):
        opened(random_checkpoint(), folder)


QUERY = "transformer_blocks.0.attn.to_q"

KINDS: dict[str, dict[str, tuple[int, ...]]] = {
    "1 of DoRA": {f"lora_unet_{flat(QUERY)}.dora_scale": (96, 1)},
    "1 of DoRA (transformer": {f"transformer.{QUERY}.lora_magnitude_vector.weight": (96,)},
    "2 of LoKr": {f"lycoris_x.{part}": (4, 4) for part in ("lokr_w1", "lokr_w2_a")},
    "1 of LoHa": {f"transformer.{QUERY}.hada_w1_a": (4, 4)},
    "1 of LoCon with a Tucker core": {f"transformer.{QUERY}.lora_mid.weight": (4, 4)},
    "1 of OFT": {f"base_model.model.{QUERY}.oft_R.weight": (4, 4)},
    "1 of GLoRA": {f"lycoris_x.{part}.weight": (4, 4) for part in ("a1",)},
    "1 of full differences of weights": {f"diffusion_model.{QUERY}.diff": (96, 96)},
    "1 of trained norms": {"lycoris_transformer_blocks_0_norm1.w_norm": (96,)},
    "1 of LoRA with biases (lora_bias)": {f"transformer.{QUERY}.lora_B.bias": (96,)},
    "1 of weights trained whole (PEFT's modules_to_save or bias)": {"base_model.model.img_in.weight": (96, 4)},
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_other_kinds_are_named(random_checkpoint: Callable[..., Path], tmp_path: Path, kind: str) -> None:
    path = write_lora(tmp_path / "style.safetensors", factors(random_checkpoint()), alpha=4.0)
    edit_tensors(path, lambda tensors: tensors.update({key: torch.ones(shape) for key, shape in KINDS[kind].items()}))
    with pytest.raises(QwenImageError) as raised:
        opened(random_checkpoint(), path)
    assert str(raised.value).startswith(
        f"{path}: its keys are not those of a plain LoRA, the only kind that can be merged here: {kind}"
    )


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_transformer_as_an_adapter(random_checkpoint: Callable[..., Path], tmp_path: Path, prefix: str) -> None:
    path = tmp_path / "transformer.safetensors"
    tensors: dict[str, Any] = {prefix + name: tensor for name, tensor in weights(random_checkpoint()).items()}
    save_file(tensors, path)
    with pytest.raises(
        QwenImageError, match=r"tensors of the transformer itself .* give a transformer as --transformer"
    ):
        opened(random_checkpoint(), path)
