"""Which shapes an engine is built for: the sizes of a bundle's requests, as the axes of every component.

The smallest sizes are as small as there are any, since a lower bound costs a plan nothing; the largest cost memory, so
they follow from what is asked for. Pictures and reference images may have any aspect ratio up to `WIDEST`.
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
"""Of a picture's sides and a reference image's, the longer over the shorter, for which profiles have room."""

DEFAULT_SIZES = ((512, 512), (1024, 1024), (2048, 2048))
DEFAULT_PROMPT_TOKENS = Range(1, 77, MAX_PROMPT_TOKENS)
DEFAULT_REFERENCES = Range(0, 1, 3)
ONE_PICTURE = Range.of(1)

ANY_SIZE = "any"
"""Name of the one profile of a component that no picture's size changes."""

_SLOT_LATENTS = 4
_SIDE = SIDE_MULTIPLE // PIXELS_PER_LATENT
"""Latents along the least side, and what every side is a multiple of."""

_BORDER = 8
"""Tokens to spare where the prompt's words meet the template's, whose pieces may part otherwise than alone."""

_SIZED = tuple(row.name for row in COMPONENTS.values() if row.on_latents and not row.needs_reference_images)
"""Components whose inputs a picture's size changes."""


@dataclass(frozen=True)
class Bucket:
    """A picture size that a profile is tuned for, in latents; every smaller picture fits into it as well."""

    height: int
    width: int

    @property
    def name(self) -> str:
        """As the command takes it: "1024x768", width first."""
        return f"{self.width * PIXELS_PER_LATENT}x{self.height * PIXELS_PER_LATENT}"

    @property
    def sides(self) -> tuple[tuple[str, int], ...]:
        """Axes and their latents."""
        return (("height", self.height), ("width", self.width))

    @property
    def tokens(self) -> int:
        """Latents of the picture."""
        return self.height * self.width

    @property
    def longest(self) -> int:
        """Latents along the longest side of a picture of its area."""
        return max(self.height, self.width, math.isqrt(WIDEST * self.tokens) // _SIDE * _SIDE)

    @property
    def shortest(self) -> int:
        """Latents along the shorter side of a picture of its area, at most."""
        return math.isqrt(self.tokens) // _SIDE * _SIDE

    def lying(self) -> tuple[Range, Range]:
        """Rows and columns of pictures of its area that are no higher than wide; the other way around for the rest.

        One pair for both would be `longest` squared: at 2048x2048 that is 180 * 180 latents, and no picture of 16,384
        has more than 128 * 180 = 23,040 between its bounds.
        """
        low, high = sorted((self.height, self.width))
        return Range(_SIDE, low, self.shortest), Range(_SIDE, high, self.longest)


@dataclass(frozen=True)
class BuildShapes:
    """What is asked for.

    Attributes:
        sizes: (width, height) of pictures in pixels, one profile each.
        prompt_tokens: of the prompt alone, without the template's.
        references: reference images of a request.
        reference_resolution: side in pixels of a square of a reference image's area.
        batch: pictures drawn at once.
    """

    sizes: tuple[tuple[int, int], ...] = DEFAULT_SIZES
    prompt_tokens: Range = DEFAULT_PROMPT_TOKENS
    references: Range = DEFAULT_REFERENCES
    reference_resolution: int = DEFAULT_RESOLUTION
    batch: Range = ONE_PICTURE

    def __post_init__(self) -> None:
        """Refuse what no request can have.

        Raises:
            UsageError: a size that is no picture's, two of one area, or more tokens, images or pictures than there can
                be.
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
        """The sizes in latents, smallest area first.

        Raises:
            UsageError: see `latent_size`.
        """
        found = [Bucket(*latent_size(width, height)) for width, height in self.sizes]
        return tuple(sorted(found, key=lambda bucket: bucket.tokens))


@dataclass(frozen=True)
class Template:
    """Tokens that the prompt's template adds, without images' slots and the prompt's own.

    Attributes:
        system: of the system turn, which the transformer does not see.
        runs: by number of reference images, those of each run of text around them, the system turn's left out.
    """

    system: int
    runs: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, tokenizer: Tokenizer, most: int) -> Template:
        """Count them with a bundle's tokenizer, for no reference image and for each number of them up to `most`.

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
        """Of all runs together."""
        return sum(self.runs[references])


def build_profiles(contract: Contract, shapes: BuildShapes, template: Template, halo: int) -> tuple[Profile, ...]:
    """The profiles of a component, in the order in which its engine numbers them.

    One for each bucket where a picture's size changes an input, else one; of buckets that ask for the same shapes the
    first alone. Of rows and columns of a whole picture there are two a bucket, see `Bucket.lying`. `halo` is that of
    the decoder's tiles.
    """
    component = contract.component
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
            tokens = Range(max(smaller + 1, _SIDE**2), bucket.tokens, bucket.tokens)
            named = {"": {"tokens": tokens + shapes.references * axes["image"] if component == "joint" else tokens}}
        smaller = bucket.tokens
        for kind, own in named.items():
            item = profile(contract, bucket.name + kind, axes | own)
            if all(item.shapes != other.shapes for other in found):
                found.append(item)
    return tuple(found)


def reference_latents(resolution: int) -> Range:
    """Latents of one reference image: the least there are, those of the square, the most that rounding makes of it.

    `reference_size` rounds each side to the nearest multiple of 32: a side of n of them was n - 1/2 at least.
    """
    units = resolution / SIDE_MULTIPLE
    longest, square = round(units * math.sqrt(WIDEST)), round(units) ** 2
    most = max(
        short * min(longest, round(units * units / (short - 0.5)))
        for short in range(round(units / math.sqrt(WIDEST)), round(units) + 1)
    )
    return Range(*(count * _SLOT_LATENTS for count in (1, square, max(most, square))))


def _axes(component: str, shapes: BuildShapes, template: Template) -> dict[str, Range]:
    """Axes that no picture's size changes."""
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
    """Latents that a tile of the decoder reads along a side, of pictures whose sides are `longest` at most."""

    def read(size: int) -> int:
        return max(span.read_stop - span.read_start for span in spans(size, halo))

    return Range(_SIDE, read(side), max(read(size) for size in range(_SIDE, longest + 1, _SIDE)))


def _from_one(size: Range) -> Range:
    return Range(1, size.best, size.largest)
