import numpy as np
import pytest
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.images.fit import reference_size
from qwen_image_engine.runtime.images.pixels import encoder_pixels, fit_reference, reference_hash, vae_pixels

SIZES = [(64, 64), (300, 200), (200, 300), (600, 75), (37, 411)]


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(width).integers(0, 256, (height, width, 4), dtype=np.uint8))


def fit(image: Image.Image, resolution: int = 160) -> np.ndarray:
    return fit_reference(image, resolution, name="reference image", min_pixels=1024, max_pixels=2**24)


@pytest.mark.parametrize(("width", "height"), SIZES)
def test_both_copies_equal_diffusers(width: int, height: int) -> None:
    image = picture(width, height)
    size = reference_size(width, height, 160, name="", min_pixels=1024, max_pixels=2**24)
    processor = VaeImageProcessor(vae_scale_factor=16, vae_latent_channels=64)
    resized = processor.resize(image, width=size[0], height=size[1])
    white = Image.new("RGB", size, (255, 255, 255))  # as QwenImage21Pipeline._get_qwen_prompt_embeds
    white.paste(resized, mask=resized.getchannel("A"))

    rgba = fit(image)

    assert rgba.dtype == np.uint8
    np.testing.assert_array_equal(rgba, np.asarray(resized))
    np.testing.assert_array_equal(encoder_pixels(rgba), np.asarray(white))
    expected = processor.preprocess(image, width=size[0], height=size[1]).numpy()
    actual = vae_pixels(rgba)
    assert actual.dtype == np.float32
    assert actual.shape == (1, 4, size[1], size[0])
    assert actual.flags.c_contiguous
    np.testing.assert_array_equal(actual, expected)


def test_an_image_of_the_fitted_size_is_not_filtered() -> None:
    image = picture(160, 160)
    np.testing.assert_array_equal(fit(image), np.asarray(image))


def test_transparent_is_white_to_the_encoder() -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    assert (encoder_pixels(rgba) == 255).all()
    rgba[..., 3] = 255
    assert (encoder_pixels(rgba) == 0).all()


def test_an_image_outside_the_bounds_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^reference image is 32x32 at the reference resolution 33: 1024 pixels"):
        fit_reference(picture(64, 64), 33, name="reference image", min_pixels=2048, max_pixels=4096)


def test_hash_tells_size_and_pixels() -> None:
    rgba = np.zeros((32, 64, 4), np.uint8)
    other = rgba.copy()
    other[31, 63, 3] = 1
    hashes = [reference_hash(array) for array in (rgba, other, rgba.reshape(64, 32, 4))]
    assert len({*hashes}) == 3
    assert all(len(value) == 64 for value in hashes)
    wide = np.zeros((32, 128, 4), np.uint8)
    assert reference_hash(wide[:, ::2]) == reference_hash(rgba) == hashes[0]
