"""The lean runtime: everything that a picture needs except the networks. It imports numpy, tokenizers and pillow.

It never imports torch.

    from qwen_image_engine.runtime import QwenImage

    with QwenImage.load("bundle") as pipeline:
        pipeline.generate("a red circle", width=256, height=256, steps=20, seed=7)[0].save("circle.png")

The public names are below. Each is imported when it is first used, so that the import of this package costs nothing.
"""

from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.entries import lazy_names

if TYPE_CHECKING:
    from qwen_image_engine.engines.core.errors import Cancelled as Cancelled
    from qwen_image_engine.engines.core.errors import QwenImageError as QwenImageError
    from qwen_image_engine.engines.core.errors import UsageError as UsageError
    from qwen_image_engine.runtime.conditioning import Conditioning as Conditioning
    from qwen_image_engine.runtime.images.parameters import PictureParameters as PictureParameters
    from qwen_image_engine.runtime.images.picture import Picture as Picture
    from qwen_image_engine.runtime.pipeline import QwenImage as QwenImage
    from qwen_image_engine.runtime.request import Request as Request
    from qwen_image_engine.runtime.sampling.step import Step as Step

__all__ = [
    "Cancelled",
    "Conditioning",
    "Picture",
    "PictureParameters",
    "QwenImage",
    "QwenImageError",
    "Request",
    "Step",
    "UsageError",
]

__getattr__ = lazy_names(
    __name__,
    {
        "Cancelled": "engines.core.errors",
        "Conditioning": "runtime.conditioning",
        "Picture": "runtime.images.picture",
        "PictureParameters": "runtime.images.parameters",
        "QwenImage": "runtime.pipeline",
        "QwenImageError": "engines.core.errors",
        "Request": "runtime.request",
        "Step": "runtime.sampling.step",
        "UsageError": "engines.core.errors",
    },
)
