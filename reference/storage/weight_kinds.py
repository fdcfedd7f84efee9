"""Kinds of weights that are recognised by names and dtypes, so that an error says what a file holds.

Sources of the names: ComfyUI (`comfy/quant_ops.py`), nunchaku, bitsandbytes, AutoGPTQ, AutoAWQ, ModelOpt,
compressed-tensors, quanto; LyCORIS; and the state dicts of diffusers and transformers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.storage.tensor_file import TensorInfo

_QUANTISED = {
    r"\.comfy_quant$": "ComfyUI's quantised layers",
    r"(^|\.)(scaled_fp8|scale_weight|scale_input)$": "fp8 with scales, as ComfyUI has it",
    r"\.(wscales|smooth_factor|smooth_factor_orig)$": "SVDQuant, as nunchaku has it",
    r"\.(absmax|nested_absmax|quant_map|quant_state\..*|SCB)$": "bitsandbytes",
    r"\.(qzeros|g_idx)$": "GPTQ or AWQ",
    r"\.(weight_scale|weight_scale_2|weight_scale_inv|weight_packed|input_scale)$": "fp8, int8 or fp4 with scales",
    r"\.weight\._(data|scale)$": "quanto",
}
"""Kinds of quantisation by the name of a tensor that only they have; the first match counts."""

_QUANTISED_DTYPES = {"F8_E4M3": "fp8", "F8_E5M2": "fp8", "I8": "int8", "U8": "8 or 4 bits"}

_ADAPTER = re.compile(r"(?:^|[._])(?:lora|lokr|hada|oft|dora|lycoris)[._]")

_MODELS = {
    r"(^|\.)controlnet_": "a ControlNet",
    r"(^|\.)transformer_blocks\.\d+\.img_mod\.": "the transformer of the first Qwen-Image",
    r"(^|\.)double_stream_modulation_img\.": "the transformer of FLUX.2",
    r"(^|\.)(double_blocks|single_transformer_blocks)\.\d+\.": "the transformer of FLUX or of a relative of it",
    r"(^|\.)(joint_blocks\.\d+\.|transformer_blocks\.\d+\.norm1_context\.)": "the transformer of Stable Diffusion 3",
    r"(^|\.)noise_refiner\.\d+\.": "the transformer of Z-Image or Lumina",
    r"(^|\.)blocks\.\d+\.(cross_attn|attn2)\.": "the transformer of Wan or of a relative of it",
    r"(^|\.)(input_blocks\.\d+|down_blocks\.\d+\.attentions)\.": "a Stable Diffusion UNet",
    r"(^|\.)layers\.\d+\.self_attn\.|(^|\.)blk\.\d+\.": "a language model, such as a text encoder",
    r"(^|\.)(encoder|decoder)\.(conv_in|conv1|conv_out|mid|mid_block)\.": "a VAE",
}
"""Models by the name of a tensor that they have; the first match counts."""


def check_unquantised(location: Path, tensors: Mapping[str, TensorInfo]) -> None:
    """Raise if names or dtypes are those of quantised weights.

    Raises:
        QwenImageError: a tensor belongs to quantised weights; the text names the tensor and the kind.
    """
    for pattern, kind in _QUANTISED.items():
        name = _first(pattern, tensors)
        if name is not None:
            raise _quantised(location, kind, f"tensor {name!r}")
    for name, tensor in tensors.items():
        if tensor.dtype in _QUANTISED_DTYPES and len(tensor.shape) > 1:
            kind = _QUANTISED_DTYPES[tensor.dtype]
            raise _quantised(location, kind, f"tensor {name!r} has dtype {tensor.dtype}")


def check_no_adapter(location: Path, names: Iterable[str]) -> None:
    """Raise if a name is that of an adapter's tensor.

    Raises:
        QwenImageError: a tensor belongs to an adapter.
    """
    name = next((name for name in names if _ADAPTER.search(name)), None)
    if name is not None:
        raise QwenImageError(
            f"{location}: is an adapter, such as a LoRA (tensor {name!r}), expected whole weights; pass it with --lora"
        )


def model_of(names: Iterable[str]) -> str | None:
    """Return a description of the model that the names of tensors are known from; None if no table has them."""
    names = tuple(names)
    return next((model for pattern, model in _MODELS.items() if _first(pattern, names) is not None), None)


def _first(pattern: str, names: Iterable[str]) -> str | None:
    compiled = re.compile(pattern)
    return next((name for name in names if compiled.search(name)), None)


def _quantised(location: Path, kind: str, found: str) -> QwenImageError:
    return QwenImageError(
        f"{location}: holds quantised weights: {kind} ({found}); expected the file in BF16, F16 or F32, which export "
        "quantises itself (--precision)"
    )
