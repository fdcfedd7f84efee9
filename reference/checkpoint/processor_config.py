"""The processor's settings for reference images, from the checkpoint's own JSON in either spelling."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.reference.storage.json_file import read_json
from qwen_image_engine.runtime.model.facts import IMAGE_MEAN, IMAGE_STD
from qwen_image_engine.runtime.system.json_schema import MISSING, Reader


@dataclass(frozen=True)
class ImageProcessorConfig:
    """Patches and normalisation of the vision tower's images (transformers `Qwen2VLImageProcessor`).

    Attributes:
        patch_size: side of a patch [pixels].
        temporal_patch_size: depth of a patch [frames].
        merge_size: patches a side that become one token.
        image_mean: mean of R, G and B, in 0..1.
        image_std: standard deviation of R, G and B, in 0..1.
        min_pixels: area below which the processor enlarges an image [pixels].
        max_pixels: area above which the processor shrinks an image [pixels].
    """

    patch_size: int
    temporal_patch_size: int
    merge_size: int
    image_mean: tuple[float, ...]
    image_std: tuple[float, ...]
    min_pixels: int
    max_pixels: int

    @classmethod
    def from_folder(cls, folder: Path) -> ImageProcessorConfig:
        """Read `processor_config.json` (transformers 5) or `preprocessor_config.json` (transformers 4) in `folder`.

        Raises:
            QwenImageError: both files are missing, or a key is missing or holds a value that is not implemented.
        """
        new, old = folder / "processor_config.json", folder / "preprocessor_config.json"
        if new.is_file():
            reader = Reader(read_json(new), str(new))
            # transformers 4 wrote a file of this name too, which has the processor's class alone.
            if "image_processor" in reader.values or not old.is_file():
                return cls._read(reader.section("image_processor"))
        if not old.is_file():
            raise QwenImageError(f"{folder}: incomplete: no {new.name} and no {old.name}")
        return cls._read(Reader(read_json(old), str(old)))

    @classmethod
    def _read(cls, image: Reader) -> ImageProcessorConfig:
        image.expect("patch_size", 16)
        image.expect("temporal_patch_size", 2)
        image.expect("merge_size", 2)
        for key, value in (("do_rescale", True), ("do_normalize", True)):
            if image.get(key) is not MISSING:
                image.expect(key, value)
        if image.get("rescale_factor") is not MISSING and abs(image.number("rescale_factor") * 255 - 1) > 1e-6:
            image.refuse("rescale_factor", "1/255")
        mean = tuple(map(float, image.take("image_mean", IMAGE_MEAN)))
        std = tuple(map(float, image.take("image_std", IMAGE_STD)))
        size = image.section("size")
        least, most = size.integer("shortest_edge"), size.integer("longest_edge")
        if least > most:
            size.refuse("shortest_edge", f"at most longest_edge, {most}; both are areas in pixels")
        return cls(16, 2, 2, mean, std, least, most)
