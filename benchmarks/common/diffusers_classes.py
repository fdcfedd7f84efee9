"""Classes of diffusers and transformers, imported so that they load with a CPU build of torch."""

from qwen_image_engine.reference.baselines.cpu_torchvision import leave_out_operators

leave_out_operators()  # before the imports below, which would fail otherwise

from diffusers import AutoencoderKLQwenImage21 as AutoencoderKLQwenImage21  # noqa: E402
from diffusers import QwenImage21Transformer2DModel as QwenImage21Transformer2DModel  # noqa: E402
from diffusers.models.transformers.transformer_qwenimage21 import (  # noqa: E402
    QwenImage21KVCache as QwenImage21KVCache,
)
from transformers import Qwen3VLConfig as Qwen3VLConfig  # noqa: E402
from transformers import Qwen3VLForConditionalGeneration as Qwen3VLForConditionalGeneration  # noqa: E402
