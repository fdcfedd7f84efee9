"""Files that hold something else than a transformer in BF16, F16 or F32: the error says what they hold."""

import re
from collections.abc import Callable
from pathlib import Path

import diffusers
import pytest
import torch
from safetensors.torch import save_file

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.storage.weight_kinds import model_of
from tests.support.edit_checkpoint import edit_tensors
from tests.support.single_file import write_single_file

LINEAR = "transformer_blocks.0.attn.to_q"
BYTES, NUMBERS = torch.zeros(4, 4, dtype=torch.uint8), torch.zeros(4, 4)
QUANTISED = {
    "fp8 with scales, as ComfyUI": {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)},
    "ComfyUI's quantised layers": {f"{LINEAR}.comfy_quant": BYTES, f"{LINEAR}.weight_scale": NUMBERS},
    "SVDQuant, as nunchaku": {f"{LINEAR}.qweight": BYTES, f"{LINEAR}.wscales": NUMBERS},
    "bitsandbytes": {f"{LINEAR}.weight.absmax": NUMBERS, f"{LINEAR}.weight.quant_map": NUMBERS},
    "GPTQ or AWQ": {f"{LINEAR}.qweight": BYTES, f"{LINEAR}.qzeros": BYTES},
    "fp8, int8 or fp4 with scales": {f"{LINEAR}.weight": BYTES, f"{LINEAR}.weight_scale": NUMBERS},
    "quanto": {f"{LINEAR}.weight._data": BYTES},
    "fp8 (": {f"{LINEAR}.weight": NUMBERS.to(torch.float8_e5m2)},
    "int8 (": {f"{LINEAR}.weight": BYTES.to(torch.int8)},
}


@pytest.mark.parametrize("kind", list(QUANTISED))
@pytest.mark.parametrize("prefix", ["model.diffusion_model.", ""])
def test_quantised_weights(random_checkpoint: Callable[..., Path], tmp_path: Path, kind: str, prefix: str) -> None:
    folder = random_checkpoint()
    path = write_single_file(folder, tmp_path / "model.safetensors", prefix=prefix)
    added = {prefix + key: value.clone() for key, value in QUANTISED[kind].items()}
    edit_tensors(path, lambda tensors: tensors.update(added))
    with pytest.raises(QwenImageError, match=r"holds quantised weights: .*expected the file in BF16") as raised:
        Checkpoint.open(folder, transformer_file=path)
    assert f"holds quantised weights: {kind}" in str(raised.value)


def test_quantised_weights_in_a_folder(copied: Callable[..., Path]) -> None:
    folder = copied()
    file = folder / "text_encoder" / "model.safetensors"
    edit_tensors(file, lambda tensors: tensors.update({"model.language_model.layers.0.mlp.SCB": torch.zeros(4)}))
    with pytest.raises(QwenImageError, match=r"text_encoder: holds quantised weights: bitsandbytes \(tensor 'model"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "key",
    [
        f"transformer.{LINEAR}.lora_A.weight",
        "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight",
        "lycoris_transformer_blocks_0_attn_to_q.lokr_w1",
        f"base_model.model.{LINEAR}.lora_A.default.weight",
        f"{LINEAR}.hada_w1_a",
    ],
)
def test_an_adapter(random_checkpoint: Callable[..., Path], tmp_path: Path, key: str) -> None:
    save_file({key: torch.zeros(4, 96)}, tmp_path / "style.safetensors")
    with pytest.raises(QwenImageError, match=rf"is an adapter.*\(tensor '{re.escape(key)}'\).*pass it with --lora$"):
        Checkpoint.open(random_checkpoint(), transformer_file=tmp_path / "style.safetensors")


MODELS = {
    "the transformer of the first Qwen-Image": ("QwenImageTransformer2DModel", {"num_layers": 1}),
    "a ControlNet": ("QwenImageControlNetModel", {"num_layers": 1}),
    "the transformer of FLUX or": ("FluxTransformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "the transformer of FLUX.2": ("Flux2Transformer2DModel", {"num_layers": 1, "num_single_layers": 1}),
    "the transformer of Stable Diffusion 3": ("SD3Transformer2DModel", {"num_layers": 1}),
    "the transformer of Z-Image or Lumina": ("ZImageTransformer2DModel", {"n_layers": 1}),
    "the transformer of Wan or": ("WanTransformer3DModel", {"num_layers": 1}),
    "a Stable Diffusion UNet": ("UNet2DConditionModel", {}),
}


@pytest.mark.parametrize("described", list(MODELS))
def test_other_models_are_known_by_the_names_of_diffusers(described: str) -> None:
    name, sizes = MODELS[described]
    with torch.device("meta"):
        model = getattr(diffusers, name)(**sizes)
    found = model_of(model.state_dict())
    assert found is not None
    assert found.startswith(described)


@pytest.mark.parametrize(
    ("network", "described"),
    [("vae/diffusion_pytorch_model", "a VAE"), ("text_encoder/model", "a language model, such as a text encoder")],
)
def test_another_network_of_the_checkpoint(
    random_checkpoint: Callable[..., Path], network: str, described: str
) -> None:
    folder = random_checkpoint()
    with pytest.raises(QwenImageError, match=rf"seems to be {described}, expected the transformer of Qwen-Image 2"):
        Checkpoint.open(folder, transformer_file=folder / f"{network}.safetensors")


def test_an_unknown_model(random_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    save_file({"first.weight": torch.zeros(2), "second.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(QwenImageError, match=r"its 2 keys \(first\.weight, second\.weight\) are unknown, expected"):
        Checkpoint.open(random_checkpoint(), transformer_file=tmp_path / "model.safetensors")
