"""The contract of every component: its input and output tensors, as data.

The dynamic axes of an export, the optimization profiles, the binding, the manifest and the table in the docs derive
from `CONTRACTS`. An axis is an integer, the name of a size of `Dims` ("heads", "head_dim/2"), or a symbol. The symbols:

- "batch": images at once
- "text": tokens of text
- "prefix": tokens before the tokens of the call
- "tokens": target tokens, height * width
- "height" and "width": rows and columns of the latents
- "2*height": rows of the decoder's features
- "16*height": rows of the image
- "image": latents of a reference image
- "slots": tokens of a reference image in the text encoder
- "image+text": latents of a reference image, then tokens of text; in outputs alone

A symbol has one value in all tensors of a call.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from math import prod
from typing import Any

from qwen_image_engine.engines.core.dtypes import DTYPES
from qwen_image_engine.engines.core.errors import QwenImageError

TIME_FEATURES = 256
"""Width of the time features: 128 cosines, then 128 sines, of 1000 * sigma."""

CODES = "float8_e4m3fn"
"""Dtype of keys and values that are held as codes. A value is a code times the tensor's scale, which is in the graphs.
On the host an array of codes is uint8."""

PATCH_VALUES = 3 * 2 * 16 * 16
"""Values in a patch of the vision tower: channels * frames * rows * columns."""


def layer_tensor(name: str) -> str:
    """Return the name in the prefix cache of an input's or output's keys or values: "key_3" of "own_key_3"."""
    return name.removeprefix("own_")


@dataclass(frozen=True)
class TensorSpec:
    """A tensor of a contract: its name in the graph, its axes, its dtype by numpy's name, its meaning with units."""

    name: str
    shape: tuple[str | int, ...]
    dtype: str
    meaning: str

    @property
    def is_cache(self) -> bool:
        """Whether the tensor holds keys or values, which stay on the device between `prefix` and `step`."""
        return self.layer_tensor.startswith(("key_", "value_"))

    @property
    def layer_tensor(self) -> str:
        """Name of keys or values in the prefix cache, where the tensor goes or comes from: "key_3" of "own_key_3"."""
        return layer_tensor(self.name)

    def symbols(self) -> Iterator[str]:
        """Return the symbols of the tensor's axes without their factors. A sum gives each of its parts."""
        return (split_axis(part)[1] for axis in self.shape if isinstance(axis, str) for part in axis.split("+"))

    def describe(self) -> str:
        """Return dtype and axes as they stand in an error: `float32 (batch, tokens, 64)`."""
        return f"{self.dtype} {describe_shape(self.shape)}"


@dataclass(frozen=True)
class Contract:
    """The input and output tensors of a component, in the order of the graph."""

    component: str
    purpose: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def symbols(self) -> tuple[str, ...]:
        """Return the symbols of all axes without factors, in order of appearance: ("batch", "tokens", "prefix")."""
        return tuple(dict.fromkeys(name for spec in (*self.inputs, *self.outputs) for name in spec.symbols()))

    def cache_bytes(self, tokens: int) -> int:
        """Return the bytes of the keys and values that go in, for this number of prefix tokens; 0 if none go in."""
        items = ((prod(size for size in spec.shape if isinstance(size, int)), spec) for spec in self.inputs)
        return tokens * sum(count * DTYPES[spec.dtype].bytes for count, spec in items if spec.is_cache)

    def to_json(self) -> dict[str, Any]:
        """Return plain lists and dicts, as the manifest stores them. `from_json` reads them back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Contract":
        """Return the contract that `to_json` wrote. The manifest's schema has checked the object before."""
        inputs, outputs = (
            tuple(TensorSpec(**{**item, "shape": tuple(item["shape"])}) for item in data[key])
            for key in ("inputs", "outputs")
        )
        return cls(data["component"], data["purpose"], inputs, outputs)

    def same_tensors(self, other: "Contract") -> bool:
        """Return whether names, axes and dtypes are the same in the same order, whatever the texts say."""
        return [_port(spec) for spec in self.inputs] == [_port(spec) for spec in other.inputs] and [
            _port(spec) for spec in self.outputs
        ] == [_port(spec) for spec in other.outputs]


@dataclass(frozen=True)
class Dims:
    """Sizes of a checkpoint that its contracts name."""

    encoder_hidden: int
    """Width of the text encoder's hidden states."""
    encoder_head_dim: int
    context: int
    """Width of the hidden states that the transformer takes from the text encoder."""
    layers: int
    """Blocks of the transformer."""
    heads: int
    head_dim: int
    channels: int
    """Channels of a latent token in the transformer."""
    z: int
    """Channels of the VAE's latents."""
    features: int
    """Channels of the features between the two parts of the VAE decoder."""
    vision_head_dim: int
    deepstack: int
    """Layers of the text encoder after which features of the reference images are added."""


def _f32(name: str, *shape: str | int, meaning: str) -> TensorSpec:
    return TensorSpec(name, shape, "float32", meaning)


def _rotary(axis: str, half: str, what: str, of: str = "") -> tuple[TensorSpec, TensorSpec]:
    return (
        _f32(f"{of}cos", axis, half, meaning=f"cosine of the rotary angle of {what}"),
        _f32(f"{of}sin", axis, half, meaning="sine of the same angle"),
    )


def _cache(axis: str, what: str, of: str = "") -> tuple[TensorSpec, TensorSpec]:
    return (
        _f32(
            f"{of}key_{{layer}}",
            "batch",
            axis,
            "heads",
            "head_dim",
            meaning=f"normalised, rotated keys of {what} in one block",
        ),
        _f32(f"{of}value_{{layer}}", "batch", axis, "heads", "head_dim", meaning=f"values of {what} in the same block"),
    )


_CACHE = _cache("prefix", "the prefix")
_TARGET = _f32("latents", "batch", "tokens", "channels", meaning="target latents at sigma, row by row")
_TIME = _f32("time_features", 1, TIME_FEATURES, meaning="cosines, then sines, of 1000 * sigma; one for the batch")
_LATENTS = _f32("latents", "batch", "z", "height", "width", meaning="normalised per channel: (mode - mean) / std")
_FEATURES = _f32(
    "features", "batch", "features", "2*height", "2*width", meaning="of the decoder, at twice the latents' resolution"
)
_IMAGE = _f32("image", "batch", 4, "16*height", "16*width", meaning="RGBA, each channel in [-1, 1]")

CONTRACTS: Mapping[str, Contract] = {
    item.component: item
    for item in (
        Contract(
            "text_encoder",
            "Hidden states of a prompt; runs once a prompt.",
            (
                _f32("embeddings", "batch", "text", "encoder_hidden", meaning="rows of the token embedding table"),
                *_rotary("text", "encoder_head_dim/2", "each token, halves of a head paired"),
                _f32(
                    "deepstack_{deepstack}",
                    "batch",
                    "text",
                    "encoder_hidden",
                    meaning="features of reference images, added after one decoder layer; zero at text",
                ),
            ),
            (
                _f32(
                    "hidden_states",
                    "batch",
                    "text",
                    "encoder_hidden",
                    meaning="output of the last decoder layer, before the final norm",
                ),
            ),
        ),
        Contract(
            "vision",
            "Features of a reference image; runs once an image.",
            (
                _f32(
                    "patches",
                    "batch",
                    "4*slots",
                    PATCH_VALUES,
                    meaning="pixels (channel, frame, row, column), 2x2 blocks",
                ),
                TensorSpec("indices", ("4*slots", 4), "int64", "rows of the position table around each patch"),
                _f32("weights", "4*slots", 4, meaning="share of each of those rows"),
                *_rotary("4*slots", "vision_head_dim/2", "each patch, halves of a head paired"),
            ),
            (
                _f32("embeddings", "batch", "slots", "encoder_hidden", meaning="what stands in the image's slots"),
                _f32(
                    "deepstack_{deepstack}",
                    "batch",
                    "slots",
                    "encoder_hidden",
                    meaning="what is added there after one decoder layer of the text encoder",
                ),
            ),
        ),
        Contract(
            "prefix",
            "Keys and values of the text before the first reference image, or of all; runs once a prompt.",
            (
                _f32("text_states", "batch", "prefix", "context", meaning="hidden states without the system turn"),
                *_rotary("prefix", "head_dim/2", "each prefix token, neighbouring channels paired"),
            ),
            _CACHE,
        ),
        Contract(
            "prefix_image",
            "Keys and values of a reference image and of the text after it; runs once an image.",
            (
                _f32("latents", "batch", "image", "channels", meaning="latents of the image, row by row"),
                _f32("text_states", "batch", "text", "context", meaning="hidden states of the text after it"),
                *_rotary("image", "head_dim/2", "each latent, neighbouring channels paired", "image_"),
                *_rotary("text", "head_dim/2", "each text token, neighbouring channels paired", "text_"),
                *_CACHE,
            ),
            _cache("image+text", "these tokens", "own_"),
        ),
        Contract(
            "step",
            "Velocity of the target at one sigma; runs every step.",
            (
                _TARGET,
                _TIME,
                *_rotary("tokens", "head_dim/2", "each target token, neighbouring channels paired"),
                *_CACHE,
            ),
            (_f32("velocity", "batch", "tokens", "channels", meaning="d latents / d sigma"),),
        ),
        Contract(
            "joint",
            "Velocity where attention is bidirectional, in place of prefix and step; runs every step.",
            (
                _f32("text_states", "batch", "text", "context", meaning="hidden states without system turn and slots"),
                replace(_TARGET, meaning="latents of the reference images, then of the target at sigma, row by row"),
                _TIME,
                *_rotary("text", "head_dim/2", "each text token, neighbouring channels paired", "text_"),
                *_rotary("tokens", "head_dim/2", "each latent, neighbouring channels paired"),
            ),
            (_f32("velocity", "batch", "tokens", "channels", meaning="d latents / d sigma; the target's is last"),),
        ),
        Contract(
            "vae_decoder_mid",
            "Features of final latents, whose attention sees the whole picture; runs once an image.",
            (_LATENTS,),
            (_FEATURES,),
        ),
        Contract(
            "vae_decoder_up",
            "The image of those features, where a pixel depends on its neighbourhood alone; runs once a tile.",
            (_FEATURES,),
            (_IMAGE,),
        ),
        Contract("vae_encoder", "Latents of a reference image; runs once an image.", (_IMAGE,), (_LATENTS,)),
    )
}
"""The contracts with sizes by name. `{layer}` stands for each block of the transformer, `{deepstack}` for each layer of
the text encoder after which features are added."""


def contract(component: str, dims: Dims, cache: str = "float32", codes: Collection[str] = ()) -> Contract:
    """Return the contract of `component` for the sizes of a checkpoint, with a pair `key_i`, `value_i` for each block.

    `cache` is the dtype of keys and values, which stay on the device between `prefix` and `step`. Those named in
    `codes`, such as "key_3", are held in `CODES` instead.

    Raises:
        QwenImageError: there is no component of this name.
    """
    named = CONTRACTS.get(component)
    if named is None:
        raise QwenImageError(f"no component {component!r}; known: {', '.join(CONTRACTS)}")
    return replace(
        named,
        inputs=tuple(_filled(named.inputs, dims, cache, codes)),
        outputs=tuple(_filled(named.outputs, dims, cache, codes)),
    )


def split_axis(axis: str) -> tuple[int, str]:
    """Return factor and name of a symbolic axis: "16*height" is (16, "height"), "batch" is (1, "batch")."""
    factor, star, name = axis.partition("*")
    return (int(factor), name) if star else (1, axis)


def describe_shape(shape: tuple[str | int | None, ...]) -> str:
    """Return the axes in brackets, `?` for an unknown axis."""
    return f"({', '.join('?' if axis is None else str(axis) for axis in shape)})"


def markdown() -> str:
    """Return the contracts as Markdown for the docs, one table for each component."""
    return "\n".join(line for item in CONTRACTS.values() for line in _section(item))


def _section(item: Contract) -> Iterator[str]:
    yield from (
        f"### {item.component}",
        "",
        item.purpose,
        "",
        "| | tensor | shape | dtype | meaning |",
        "|---|---|---|---|---|",
    )
    for side, specs in (("in", item.inputs), ("out", item.outputs)):
        for spec in specs:
            shape = ", ".join(str(axis).replace("*", "·") for axis in spec.shape)
            yield f"| {side} | `{spec.name}` | {shape} | {spec.dtype} | {spec.meaning} |"
    yield ""


def _filled(specs: tuple[TensorSpec, ...], dims: Dims, cache: str, codes: Collection[str]) -> Iterator[TensorSpec]:
    sizes = {field.name: int(getattr(dims, field.name)) for field in fields(dims)}
    sized = [replace(spec, shape=tuple(_sized(axis, sizes) for axis in spec.shape)) for spec in specs]
    yield from (spec for spec in sized if "{" not in spec.name)
    for index in range(dims.deepstack):
        yield from (_numbered(spec, deepstack=index) for spec in sized if "{deepstack}" in spec.name)
    for index in range(dims.layers):
        numbered = [_numbered(spec, layer=index) for spec in sized if "{layer}" in spec.name]
        yield from (replace(spec, dtype=CODES if spec.layer_tensor in codes else cache) for spec in numbered)


def _numbered(spec: TensorSpec, **index: int) -> TensorSpec:
    return replace(spec, name=spec.name.format(**index))


def _sized(axis: str | int, sizes: Mapping[str, int]) -> str | int:
    if isinstance(axis, int):
        return axis
    name, _, divisor = axis.partition("/")
    return sizes[name] // int(divisor or 1) if name in sizes else axis


def _port(spec: TensorSpec) -> tuple[str, tuple[str | int, ...], str]:
    return spec.name, spec.shape, spec.dtype
