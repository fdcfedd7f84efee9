"""Everything a picture needs except the networks: numpy, tokenizers and pillow, never torch.

    from qwen_image_engine.runtime import QwenImage

    with QwenImage.load("bundle") as pipeline:
        pipeline.generate("a red circle", width=256, height=256, steps=20, seed=7)[0].save("circle.png")

The public names are below; each is imported when it is first used, so that importing this package costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen_image_engine.engines.core.errors import QwenImageError as QwenImageError
    from qwen_image_engine.engines.core.errors import UsageError as UsageError
    from qwen_image_engine.runtime.conditioning import Conditioning as Conditioning
    from qwen_image_engine.runtime.images.picture import Picture as Picture
    from qwen_image_engine.runtime.images.picture import PictureParameters as PictureParameters
    from qwen_image_engine.runtime.pipeline import QwenImage as QwenImage
    from qwen_image_engine.runtime.sampling.euler import Step as Step

_HOME = {
    "Conditioning": "qwen_image_engine.runtime.conditioning",
    "Picture": "qwen_image_engine.runtime.images.picture",
    "PictureParameters": "qwen_image_engine.runtime.images.picture",
    "QwenImage": "qwen_image_engine.runtime.pipeline",
    "QwenImageError": "qwen_image_engine.engines.core.errors",
    "Step": "qwen_image_engine.runtime.sampling.euler",
    "UsageError": "qwen_image_engine.engines.core.errors",
}

__all__ = [
    "Conditioning",
    "Picture",
    "PictureParameters",
    "QwenImage",
    "QwenImageError",
    "Step",
    "UsageError",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
