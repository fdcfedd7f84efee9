"""The encoding of a prompt and reference images. Every step uses the result, which does not depend on size or seed."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qwen_image_engine.engines.backends import ON_GPU
from qwen_image_engine.engines.core.device_array import DeviceArray, Values, with_room
from qwen_image_engine.engines.core.errors import OutOfMemory, QwenImageError
from qwen_image_engine.engines.core.lru_cache import LruCache
from qwen_image_engine.engines.cuda.driver import device_info
from qwen_image_engine.runtime.component_pool import ComponentPool
from qwen_image_engine.runtime.images.pixels import encoder_pixels, vae_pixels
from qwen_image_engine.runtime.images.reference_image import ReferenceImage
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.model.latents import pack_latents
from qwen_image_engine.runtime.model.rope import encoder_rotary_tables, rotary_tables
from qwen_image_engine.runtime.model.sequence import (
    ImageBlock,
    Segment,
    TextRun,
    encoder_positions,
    prefix_positions,
    text_mask,
)
from qwen_image_engine.runtime.model.vision import interpolation, vision_patches, vision_rotary_tables
from qwen_image_engine.runtime.system.machine import reachable_memory_bytes
from qwen_image_engine.runtime.text.embedding import EmbeddingTable
from qwen_image_engine.runtime.text.prompt import PromptTokens, tokenize

KEPT_BYTES = 1 << 30
"""Default limit of the cache of encodings, keys and values [bytes]. Values of the last request are never evicted: in
fp32 the released model has 1 MiB of keys and values a token, 4 GiB a reference image of 1024x1024."""

_SCORE_BYTES = 2 * 4
"""Bytes for each pair of tokens in each head: one score and one probability, both float32."""

Tables = tuple[NDArray[np.float32], NDArray[np.float32]]


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoded prompt with its reference images. It does not depend on size, seed or steps and serves many pictures.

    Attributes:
        prompt: the prompt, as given.
        references: the SHA-256 of each reference image.
        segments: text and reference images in order, after the system turn.
        text_states: (1, T, context) float32, the text encoder's states of the text in all segments.
        latents: latents of each reference image, (1, h * w, channels) float32.
        cache: prefix cache: `key_0`, `value_0`, … of every layer of the transformer, each (1, tokens, heads, head_dim).
            Their dtypes are the contract's. On the CPU they are float32, or codes of FP8 in uint8; on a GPU they are in
            device memory. Empty if the transformer's attention is bidirectional.
    """

    prompt: str
    references: tuple[str, ...]
    segments: tuple[Segment, ...]
    text_states: NDArray[np.float32]
    latents: tuple[NDArray[np.float32], ...]
    cache: Mapping[str, Values]

    @property
    def length(self) -> int:
        """Tokens of the prefix."""
        return prefix_length(self.segments)

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays together."""
        return sum(array.nbytes for array in (self.text_states, *self.latents, *self.cache.values()))


@dataclass(frozen=True, eq=False)
class _Seen:
    """An encoded reference image: features for the text encoder's image slots, and latents (1, h * w, channels)."""

    embeddings: NDArray[np.float32]
    deepstack: tuple[NDArray[np.float32], ...]
    latents: NDArray[np.float32]


_Key = tuple[str, tuple[str, ...]]


class PromptEncoder:
    """The encoder of requests: vision tower, VAE encoder, text encoder and prefix passes, with a cache of results."""

    def __init__(
        self,
        components: ComponentPool,
        tokenizer: Tokenizer,
        embeddings: EmbeddingTable,
        facts: ModelFacts,
        engine: str,
        kept_bytes: int = KEPT_BYTES,
        cache_token_bytes: int | None = None,
    ) -> None:
        """Take the components and what the host knows of the model.

        Args:
            components: pool that runs the components.
            tokenizer: tokenizer of the prompts.
            embeddings: table of token embeddings.
            facts: facts of the model.
            engine: name of the components' backend.
            kept_bytes: limit of the cache [bytes].
            cache_token_bytes: bytes of a prefix token's keys and values in all layers; None for float32, or for 16 bits
                on a GPU.
        """
        self._engine = engine
        if cache_token_bytes is None:
            cache_token_bytes = facts.cache_bytes(1, 2 if engine in ON_GPU else 4)
        self._token_bytes = cache_token_bytes
        self._components = components
        self._tokenizer = tokenizer
        self._embeddings = embeddings
        self._facts = facts
        self._kept: LruCache[_Key, Conditioning] = LruCache(kept_bytes // 2)
        self._seen: LruCache[tuple[str, str], tuple[NDArray[np.float32], ...]] = LruCache(kept_bytes // 2)
        """Results of images, by component and SHA-256 of the image."""

    def prefix_tokens(self, prompt: str, references: Sequence[ReferenceImage]) -> int:
        """Return the number of prefix tokens that the target attends to. No network runs.

        Raises:
            UsageError: the prompt is too long, is not valid Unicode, or contains an image slot.
            QwenImageError: there are reference images, and the tokenizer has no tokens for them.
        """
        return prefix_tokens(self._tokens(prompt, references))

    def check(self, prompts: Sequence[str], references: Sequence[ReferenceImage]) -> tuple[int, int]:
        """Check prompts without running a network.

        Returns:
            The number of tokens of the first prompt's prefix, and the bytes of the keys and values of all prompts.

        Raises:
            UsageError: a prompt is too long, is not valid Unicode, or contains an image slot.
            QwenImageError: there is no memory for the keys and values.
        """
        tokens = [self._tokens(prompt, references) for prompt in prompts]
        check_memory(tokens, self._facts, self._engine, self._token_bytes)
        lengths = [prefix_tokens(item) for item in tokens]
        return lengths[0], sum(lengths) * self._token_bytes

    def encode(self, prompts: Sequence[str], references: Sequence[ReferenceImage] = ()) -> list[Conditioning]:
        """Encode prompts with the same reference images; see `encode_each`."""
        return self.encode_each([(prompt, references) for prompt in prompts])

    def encode_each(self, requests: Sequence[tuple[str, Sequence[ReferenceImage]]]) -> list[Conditioning]:
        """Encode prompts with reference images. Each component runs for all before the next, so that it loads once.

        Raises:
            UsageError: a prompt is too long, is not valid Unicode, or contains an image slot.
            QwenImageError: there is no memory for the keys and values, an engine failed, or an engine returned values
                that are not finite.
        """
        keys = [(prompt, tuple(image.sha256 for image in references)) for prompt, references in requests]
        images = {key: references for key, (_, references) in zip(keys, requests, strict=True)}
        found = {key: value for key in images if (value := self._kept.get(key)) is not None}
        tokens = {key: self._tokens(key[0], images[key]) for key in images if key not in found}
        if tokens:
            length = sum(map(prefix_tokens, tokens.values()))
            self._kept.shrink([*images], length * self._token_bytes)
            check_memory(tokens.values(), self._facts, self._engine, self._token_bytes)
            seen = self._see({key: images[key] for key in tokens})
            states = {key: self._text_states(item, seen[key]) for key, item in tokens.items()}
            found |= self._conditionings(tokens, states, seen)
        for key in images:
            self._kept.put(key, found[key], found[key].nbytes)
        self._kept.shrink([*images])
        return [found[key] for key in keys]

    def forget(self) -> None:
        """Evict all results of earlier requests."""
        self._kept.clear()
        self._seen.clear()

    def _tokens(self, prompt: str, references: Sequence[ReferenceImage]) -> PromptTokens:
        return tokenize(self._tokenizer, prompt, [image.block for image in references])

    def latents(self, image: ReferenceImage) -> NDArray[np.float32]:
        """Return the latents of an image alone, (1, h * w, channels). They serve it as a reference image too.

        Raises:
            QwenImageError: an engine failed, or returned values that are not finite.
        """
        (found,) = self._of_image("vae_encoder", image)
        self._seen.shrink([("vae_encoder", image.sha256)])
        return found

    def _see(self, images: Mapping[_Key, Sequence[ReferenceImage]]) -> dict[_Key, list[_Seen]]:
        """Encode each distinct image once. The vision tower runs for all images before the VAE encoder does."""
        distinct = {image.sha256: image for references in images.values() for image in references}
        features = {sha256: self._of_image("vision", image) for sha256, image in distinct.items()}
        latents = {sha256: self._of_image("vae_encoder", image)[0] for sha256, image in distinct.items()}
        self._seen.shrink([(component, sha256) for sha256 in distinct for component in ("vision", "vae_encoder")])
        seen = {
            sha256: _Seen(first, tuple(deepstack), latents[sha256]) for sha256, (first, *deepstack) in features.items()
        }
        return {key: [seen[image.sha256] for image in references] for key, references in images.items()}

    def _of_image(self, component: str, image: ReferenceImage) -> tuple[NDArray[np.float32], ...]:
        """Return the result of a component for an image, from the cache if it is there."""
        key = component, image.sha256
        found = self._seen.get(key)
        if found is None:
            found = self._features(image) if component == "vision" else (self._latents(image),)
            self._seen.put(key, found, sum(array.nbytes for array in found))
        return found

    def _latents(self, image: ReferenceImage) -> NDArray[np.float32]:
        return pack_latents(self._run("vae_encoder", image=vae_pixels(image.rgba))["latents"][:, None])

    def _features(self, image: ReferenceImage) -> tuple[NDArray[np.float32], ...]:
        facts = self._facts.vision
        rows, columns = image.block.height, image.block.width
        indices, weights = interpolation(rows, columns, facts.position_side)
        cos, sin = vision_rotary_tables(rows, columns, facts.head_dim, facts.rope_theta)
        patches = vision_patches(encoder_pixels(image.rgba), facts.image_mean, facts.image_std)[None]
        outputs = self._run("vision", patches=patches, indices=indices, weights=weights, cos=cos, sin=sin)
        return outputs["embeddings"], *(outputs[f"deepstack_{index}"] for index in range(self._facts.deepstack))

    def _text_states(self, tokens: PromptTokens, seen: Sequence[_Seen]) -> NDArray[np.float32]:
        """Return the states of the text after the system turn, (1, T, context). States of image slots are dropped."""
        facts = self._facts
        positions = encoder_positions(tokens.segments)
        cos, sin = encoder_rotary_tables(
            positions, facts.encoder_head_dim, facts.encoder_rope_theta, facts.encoder_mrope_section
        )
        embeddings = self._embeddings.rows(tokens.ids)[None]
        deepstack = [np.zeros_like(embeddings) for _ in range(facts.deepstack)]
        is_text = np.ones(len(tokens.ids), bool)
        for slots, image in zip(_slots(tokens.segments), seen, strict=True):
            is_text[slots] = False
            embeddings[:, slots] = image.embeddings
            for added, features in zip(deepstack, image.deepstack, strict=True):
                added[:, slots] = features
        inputs = {f"deepstack_{index}": added for index, added in enumerate(deepstack)}
        states = self._run("text_encoder", embeddings=embeddings, cos=cos, sin=sin, **inputs)["hidden_states"]
        is_text[: tokens.dropped] = False
        return np.ascontiguousarray(states[:, is_text])

    def _conditionings(
        self,
        tokens: Mapping[_Key, PromptTokens],
        states: Mapping[_Key, NDArray[np.float32]],
        seen: Mapping[_Key, Sequence[_Seen]],
    ) -> dict[_Key, Conditioning]:
        """Run the first prefix pass for all prompts, then the passes of the images. Return the conditionings."""
        latents = {key: tuple(image.latents for image in seen[key]) for key in tokens}
        segments = {key: _after_system_turn(item) for key, item in tokens.items()}
        caches: dict[_Key, dict[str, Values]] = {key: {} for key in tokens}
        if not self._facts.bidirectional:
            axes = self._facts.axes_dims_rope
            tables = {key: rotary_tables(prefix_positions(item), axes) for key, item in segments.items()}
            caches = {key: self._first_run(segments[key], states[key], tables[key]) for key in tokens}
            for key in tokens:
                self._image_runs(segments[key], states[key], latents[key], tables[key], caches[key])
        return {key: Conditioning(*key, segments[key], states[key], latents[key], caches[key]) for key in tokens}

    def _first_run(self, segments: Sequence[Segment], states: NDArray[np.float32], tables: Tables) -> dict[str, Values]:
        """Return the keys and values of the text before the first image, with room for all tokens after it."""
        first = segments[0]
        assert isinstance(first, TextRun)
        cos, sin = tables
        n, length = first.length, prefix_length(segments)
        found = self._run("prefix", text_states=np.ascontiguousarray(states[:, :n]), cos=cos[:n], sin=sin[:n])
        if n == length:
            return found
        room: dict[str, Values] = {}
        for name in list(found):
            make = partial(with_room, found.pop(name), length)
            room[name] = self._components.allocate("prefix_image", make)  # which runs next
        return room

    def _image_runs(
        self,
        segments: Sequence[Segment],
        states: NDArray[np.float32],
        latents: Sequence[NDArray[np.float32]],
        tables: Tables,
        cache: Mapping[str, Values],
    ) -> None:
        """Write the keys and values of each image and of the text after it into `cache`.

        Both attend to everything before them.
        """
        cos, sin = tables
        past = read = prefix_length(segments[:1])
        for image, text in zip(latents, segments[2::2], strict=True):
            assert isinstance(text, TextRun)
            middle = past + image.shape[1]
            end = middle + text.length
            own = self._run(
                "prefix_image",
                latents=image,
                text_states=np.ascontiguousarray(states[:, read : read + text.length]),
                image_cos=cos[past:middle],
                image_sin=sin[past:middle],
                text_cos=cos[middle:end],
                text_sin=sin[middle:end],
                # With a batch of one the first tokens are one stretch of memory, which engines take as it is.
                **{name: values[:, :past] for name, values in cache.items()},
            )
            for name, values in cache.items():
                values[:, past:end] = own.pop(f"own_{name}")
            past, read = end, read + text.length

    def _run(self, component: str, **inputs: Values) -> dict[str, Any]:
        outputs = self._components.run(component, inputs)
        for name, values in outputs.items():
            if not isinstance(values, DeviceArray):  # a wrong one shows in the velocity
                check_finite(component, name, values)
        return outputs


def check_memory(tokens: Collection[PromptTokens], facts: ModelFacts, engine: str, token_bytes: int) -> None:
    """Raise if the keys and values, or on a CPU the text encoder's attention scores, do not fit into free memory.

    If the engine is on a GPU, its memory counts. A GPU never holds the attention scores. The keys and values of a token
    take `token_bytes`.

    Raises:
        OutOfMemory: the arrays do not fit into free memory.
        QwenImageError: the engine needs a GPU and there is none.
    """
    on_gpu = engine in ON_GPU
    free, where = (device_info().free_bytes, "the GPU") if on_gpu else (reachable_memory_bytes(), "memory and swap")
    length, longest = sum(map(prefix_tokens, tokens)), max(len(item.ids) for item in tokens)
    needs = {f"keys and values of the {length} tokens before the target": length * token_bytes}
    if not on_gpu:
        scores = longest**2 * facts.encoder_heads * _SCORE_BYTES
        needs[f"the text encoder's attention over {longest} tokens"] = scores
    for what, needed in needs.items():
        if free is not None and needed > free:
            raise OutOfMemory(
                f"{what} take {needed} bytes and {free} bytes of {where} are free; give fewer reference images, or "
                f"smaller ones with --reference-resolution{', or run with --memory sequential' if on_gpu else ''}"
            )


def prefix_tokens(tokens: PromptTokens) -> int:
    """Return the number of prefix tokens that the target attends to."""
    return prefix_length(_after_system_turn(tokens))


def prefix_length(segments: Sequence[Segment]) -> int:
    """Return the number of tokens of the transformer's prefix: four for each image slot of the text encoder."""
    return len(text_mask(segments))


def _after_system_turn(tokens: PromptTokens) -> tuple[Segment, ...]:
    first, *rest = tokens.segments
    assert isinstance(first, TextRun)
    return TextRun(first.length - tokens.dropped), *rest


def _slots(segments: Sequence[Segment]) -> Iterator[slice]:
    """Yield the range of the text encoder's slots of each image."""
    start = 0
    for segment in segments:
        if isinstance(segment, ImageBlock):
            length = segment.height // 2 * (segment.width // 2)
            yield slice(start, start + length)
            start += length
        else:
            start += segment.length


def check_finite(component: str, name: str, values: NDArray[np.float32]) -> None:
    """Raise if an output of a component is not finite, at the component itself and not where the picture shows it.

    Raises:
        QwenImageError: a value is infinite or not a number; the text names the component and the tensor.
    """
    wrong = values.size - int(np.count_nonzero(np.isfinite(values)))
    if wrong:
        raise QwenImageError(
            f"{component}: {wrong} of {values.size} values of {name} are not finite; check the bundle's weights with "
            "qwen-image verify, and where they are right and fp16, export in bf16 or fp32"
        )
