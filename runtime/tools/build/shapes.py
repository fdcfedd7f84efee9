"""The shapes that engines are built for: the sizes of a bundle's requests, as axes of every component.

The lower bounds are the smallest valid sizes, because a lower bound costs a plan nothing. The upper bounds cost memory,
so they follow from the requested sizes. Pictures and reference images may have any aspect ratio up to `WIDEST`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokenizers import Tokenizer

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.core.contract import Contract
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.engines.plans.entry import Profile
from qwen_image_engine.engines.plans.profile import Range, profile
from qwen_image_engine.runtime.images.fit import check_resolution
from qwen_image_engine.runtime.model.sequence import ImageBlock, TextRun
from qwen_image_engine.runtime.model.size import (
    DEFAULT_RESOLUTION,
    MAX_IMAGES,
    MAX_REFERENCES,
    PIXELS_PER_LATENT,
    SIDE_MULTIPLE,
    latent_size,
)
from qwen_image_engine.runtime.model.tiles import spans
from qwen_image_engine.runtime.text.prompt import MAX_PROMPT_TOKENS, tokenize

WIDEST = 2
"""Largest aspect ratio, longer side over shorter, of pictures and reference images that profiles have room for."""

DEFAULT_SIZES = ((512, 512), (1024, 1024), (2048, 2048))
DEFAULT_PROMPT_TOKENS = Range(1, 77, MAX_PROMPT_TOKENS)
DEFAULT_REFERENCES = Range(0, 1, 3)
ONE_PICTURE = Range.of(1)

ANY_SIZE = "any"
"""Name of the only profile of a component whose inputs do not depend on the picture's size."""

_SLOT_LATENTS = 4
_SIDE = SIDE_MULTIPLE // PIXELS_PER_LATENT
"""Latents along the shortest valid side. Every side is a multiple of this number."""

_BORDER = 8
"""Spare tokens for the borders between the prompt and the template.

The tokenizer may split text at a border in another way than it splits the prompt and the template alone.
"""

_FEWEST_FP8_KEYS = 32
"""Keys of an attention in FP8 from which TensorRT for RTX 1.7.1 has a kernel for it. A prefix has one key at least."""

_SIZED = tuple(row.name for row in COMPONENTS.values() if row.on_latents and not row.needs_reference_images)
"""Components whose input shapes depend on the picture's size."""


@dataclass(frozen=True)
class Bucket:
    """A picture size in latents that a profile is tuned for. Every smaller picture fits the profile too."""

    height: int
    width: int

    @property
    def name(self) -> str:
        """The size in pixels as in the command line: "1024x768", width first."""
        return f"{self.width * PIXELS_PER_LATENT}x{self.height * PIXELS_PER_LATENT}"

    @property
    def sides(self) -> tuple[tuple[str, int], ...]:
        """Axis names with their sizes in latents."""
        return (("height", self.height), ("width", self.width))

    @property
    def tokens(self) -> int:
        """Number of latents of the picture."""
        return self.height * self.width

    @property
    def longest(self) -> int:
        """Latents along the longest side that a picture of the bucket's area can have."""
        return max(self.height, self.width, math.isqrt(WIDEST * self.tokens) // _SIDE * _SIDE)

    @property
    def shortest(self) -> int:
        """Upper bound of the latents along the shorter side of a picture of the bucket's area."""
        return math.isqrt(self.tokens) // _SIDE * _SIDE

    def lying(self) -> tuple[Range, Range]:
        """Return the ranges of rows and columns of landscape and square pictures of the bucket's area.

        For portrait pictures the two ranges change places. One pair of ranges for both kinds would have upper bounds of
        `longest` squared. At 2048x2048 that is 180 * 180 latents, while the upper bounds of landscape pictures with
        16,384 latents are 128 * 180 = 23,040.
        """
        low, high = sorted((self.height, self.width))
        return Range(_SIDE, low, self.shortest), Range(_SIDE, high, self.longest)


@dataclass(frozen=True)
class BuildShapes:
    """The requests that a user wants to run on the engines.

    Attributes:
        sizes: (width, height) of pictures in pixels, one profile each.
        prompt_tokens: number of tokens of the prompt, without the tokens of the template.
        references: number of reference images of a request.
        reference_resolution: side of a square with the area of a reference image [pixels].
        batch: number of pictures drawn at once.
    """

    sizes: tuple[tuple[int, int], ...] = DEFAULT_SIZES
    prompt_tokens: Range = DEFAULT_PROMPT_TOKENS
    references: Range = DEFAULT_REFERENCES
    reference_resolution: int = DEFAULT_RESOLUTION
    batch: Range = ONE_PICTURE

    def __post_init__(self) -> None:
        """Check that every number is possible in a request.

        Raises:
            UsageError: a size or the reference resolution is not valid; `sizes` is empty or has two sizes of one area;
                or a range of prompt tokens, reference images or pictures is outside the valid numbers.
        """
        areas = [bucket.tokens for bucket in self.buckets]
        if not areas or len(set(areas)) < len(areas):
            raise UsageError(
                f"--profile: {', '.join(f'{width}x{height}' for width, height in self.sizes) or 'no size'}: expected "
                f"sizes of different areas; one has room for every picture of its area up to {WIDEST}:1"
            )
        for flag, value, least, most in (
            ("--prompt-tokens", self.prompt_tokens, 1, MAX_PROMPT_TOKENS),
            ("--references", self.references, 0, MAX_REFERENCES),
            ("--batch", self.batch, 1, MAX_IMAGES),
        ):
            if not least <= value.least <= value.largest <= most:
                raise UsageError(f"{flag} {value}: expected numbers from {least} to {most}")
        check_resolution(self.reference_resolution)

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Picture sizes in latents, smallest area first.

        Raises:
            UsageError: a side is not a positive multiple of 32.
        """
        found = [Bucket(*latent_size(width, height)) for width, height in self.sizes]
        return tuple(sorted(found, key=lambda bucket: bucket.tokens))


@dataclass(frozen=True)
class Template:
    """The numbers of tokens that the prompt's template adds; slots of images and the prompt are not counted.

    Attributes:
        system: number of tokens of the system turn, which the transformer does not see.
        runs: numbers of tokens of the text runs around the reference images, indexed by the number of reference
            images. Tokens of the system turn are not counted.
    """

    system: int
    runs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, most: int) -> Template:
        """Count the template's tokens with a bundle's tokenizer, for 0 to `most` reference images.

        Raises:
            QwenImageError: the tokenizer has no tokens for reference images.
        """
        own = len(tokenizer.encode("a").ids)
        found = [tokenize(tokenizer, "a", [ImageBlock(_SIDE, _SIDE)] * count) for count in range(most + 1)]
        runs = []
        for tokens in found:
            first, *rest = [segment.length for segment in tokens.segments if isinstance(segment, TextRun)]
            lengths = [first - tokens.dropped, *rest]
            runs.append((*lengths[:-1], lengths[-1] - own))
        return cls(found[0].dropped, tuple(runs))

    def text(self, references: int) -> int:
        """Return the number of template tokens in all text runs around `references` reference images."""
        return sum(self.runs[references])


def build_profiles(
    contract: Contract, shapes: BuildShapes, template: Template, halo: int, *, fp8_attention: bool = False
) -> tuple[Profile, ...]:
    """Return the profiles of a component, in the order in which the engine numbers them.

    A component whose inputs depend on the picture's size has one profile for each bucket. If two buckets need the same
    shapes, only the first is used. Every other component has one profile. A component that reads rows and columns of
    the whole picture has two profiles for each bucket, see `Bucket.lying`.

    Args:
        contract: the component's inputs and outputs.
        shapes: sizes of the requests.
        template: token counts of the prompt's template.
        halo: latents around a tile of the decoder.
        fp8_attention: whether the component's attention is in FP8.
    """
    component = contract.component
    least = _FEWEST_FP8_KEYS - 1 if fp8_attention else _SIDE**2
    axes = _axes(component, shapes, template)
    if component not in _SIZED:
        return (profile(contract, ANY_SIZE, axes),)
    found: list[Profile] = []
    smaller = 0
    for bucket in shapes.buckets:
        named: dict[str, dict[str, Range]]
        if component == "vae_decoder_mid":
            low, high = bucket.lying()
            named = {" landscape": {"height": low, "width": high}, " portrait": {"height": high, "width": low}}
        elif component == "vae_decoder_up":
            named = {"": {name: _tile(side, bucket.longest, halo) for name, side in bucket.sides}}
        else:
            tokens = Range(max(smaller + 1, min(least, bucket.tokens)), bucket.tokens, bucket.tokens)
            named = {"": {"tokens": tokens + shapes.references * axes["image"] if component == "joint" else tokens}}
        smaller = bucket.tokens
        for kind, own in named.items():
            item = profile(contract, bucket.name + kind, axes | own)
            if all(item.shapes != other.shapes for other in found):
                found.append(item)
    return tuple(found)


def usual_profiles(component: str) -> int:
    """Return the number of profiles of a component in a build for the default sizes, by size of the picture."""
    return len(DEFAULT_SIZES) if component in _SIZED else 1


def reference_latents(resolution: int) -> Range:
    """Return the range of latents of one reference image.

    The range is the smallest image, the square image, and the largest image after rounding. `reference_size` rounds
    each side to the nearest multiple of 32, so a side of n units was at least n - 1/2 units long.
    """
    units = resolution / SIDE_MULTIPLE
    longest, square = round(units * math.sqrt(WIDEST)), round(units) ** 2
    most = max(
        short * min(longest, round(units * units / (short - 0.5)))
        for short in range(round(units / math.sqrt(WIDEST)), round(units) + 1)
    )
    return Range(*(count * _SLOT_LATENTS for count in (1, square, max(most, square))))


def _axes(component: str, shapes: BuildShapes, template: Template) -> dict[str, Range]:
    """Return the sizes of the axes that do not depend on the picture's size, by axis."""
    image = reference_latents(shapes.reference_resolution)
    slots = Range(*(size // _SLOT_LATENTS for size in (image.least, image.best, image.largest)))
    units = shapes.reference_resolution / SIDE_MULTIPLE
    count, prompt = shapes.references, shapes.prompt_tokens
    spare = Range(0, 0, _BORDER)
    text = _from_one(Range(*map(template.text, (count.least, count.best, count.largest))) + prompt + spare)
    sides = Range(1, round(units), round(units * math.sqrt(WIDEST))) * Range.of(_SIDE)
    axes = {
        "batch": shapes.batch if COMPONENTS[component].batched else Range.of(1),
        "image": image,
        "slots": slots,
        "height": sides,
        "width": sides,
        "text": text,
        "prefix": text + count * image,
    }
    if component == "text_encoder":
        axes["text"] = _from_one(text + Range.of(template.system) + count * slots)
    elif component == "prefix":
        axes["prefix"] = _from_one(Range.of(template.text(0)) + prompt + spare)
    elif component == "prefix_image":
        runs = template.runs[count.largest]
        axes["text"] = _from_one(Range.of(runs[-1]) + prompt + spare)
        axes["prefix"] = Range(1, runs[0], sum(runs[:-1]) + (count.largest - 1) * image.largest + _BORDER)
    return axes


def _tile(side: int, longest: int, halo: int) -> Range:
    """Return the range of latents that a tile of the decoder reads along a side of at most `longest` latents.

    The middle of the range is the largest tile along a side of `side` latents.
    """

    def read(size: int) -> int:
        return max(span.read_stop - span.read_start for span in spans(size, halo))

    return Range(_SIDE, read(side), max(read(size) for size in range(_SIDE, longest + 1, _SIDE)))


def _from_one(size: Range) -> Range:
    return Range(1, size.best, size.largest)
