"""The pipeline: prompt to picture on any engines, the bundle's or the reference's torch ones."""

import io
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qwen_image_engine.engines.core.components import Attention, components_with
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.components import Components, Memory
from qwen_image_engine.runtime.conditioning import KEPT_BYTES, Conditioning, PromptEncoder, check_finite
from qwen_image_engine.runtime.denoiser import check_guidance, denoiser
from qwen_image_engine.runtime.device_sampling import final_latents
from qwen_image_engine.runtime.images.picture import Origin as Origin
from qwen_image_engine.runtime.images.picture import Picture, PictureParameters
from qwen_image_engine.runtime.images.png import to_rgba8
from qwen_image_engine.runtime.images.read import ReferenceSource
from qwen_image_engine.runtime.images.reference_image import ReferenceImages
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.model.latents import unpack_latents
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION, latent_size
from qwen_image_engine.runtime.model.tiles import draw_tiles
from qwen_image_engine.runtime.sampling.euler import Step, Velocity, euler
from qwen_image_engine.runtime.sampling.inputs import Start
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.system.progress import ProgressBar
from qwen_image_engine.runtime.text.embedding import EmbeddingTable
from qwen_image_engine.runtime.timing import Timings

NO_REFERENCES = ReferenceImages()


def preloaded(attention: Attention) -> tuple[str, ...]:
    """Return the names of the components that run without reference images, in the order in which they run."""
    return tuple(row.name for row in components_with(attention) if not row.needs_reference_images)


class QwenImage:
    """Draws pictures from prompts. One thread at a time.

    `generate` does everything. Its stages are open to callers who own the loop: `encode`, `sample` (an iterator, so
    that progress, preview, timing and cancelling are the caller's), `denoiser` (the bare velocity, for teacher forcing)
    and `decode`.
    """

    def __init__(
        self,
        components: Components,
        tokenizer: Tokenizer,
        embeddings: EmbeddingTable,
        schedule: ScheduleConfig,
        facts: ModelFacts,
        origin: Origin,
        kept_bytes: int = KEPT_BYTES,
        absent: Collection[str] = (),
    ) -> None:
        self.schedule = schedule
        self.facts = facts
        self.origin = origin
        self._absent = absent
        self._components = components
        self._encoder = PromptEncoder(components, tokenizer, embeddings, facts, origin.engine, kept_bytes)

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        engine: str = "onnxruntime",
        memory: Memory = "resident",
        threads: int | None = None,
        watch: MemoryWatch | None = None,
        kept_bytes: int = KEPT_BYTES,
    ) -> Self:
        """Open a bundle.

        Args:
            bundle: its folder, or one that is open.
            engine: one of `engines.engine.ENGINES`.
            memory: "resident" loads every engine now and keeps it, those of reference images when the first one comes;
                "sequential" loads each when it runs and frees it before the next.
            threads: of one engine; None for every core.
            watch: of this process's memory, for `timings` to hold peaks too; the caller closes it.
            kept_bytes: of encodings, keys and values that are kept of earlier requests, beside the last one's: the same
                prompt with the same reference images then costs steps and decoding alone.

        Raises:
            UsageError: no such engine or memory policy, or no thread.
            QwenImageError: the bundle is missing, changed, incomplete or of another schema version, the engine's
                package is not installed, or memory does not suffice.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
        components = Components(partial(opened.load_engine, backend=engine, threads=threads), memory, watch)
        origin = Origin(engine, opened.manifest.precision, opened.manifest.checkpoint.name)
        facts = opened.manifest.facts
        pipeline = cls(
            components,
            opened.tokenizer,
            opened.embeddings(),
            opened.schedule(),
            facts,
            origin,
            kept_bytes,
            absent=opened.manifest.absent_for_references,
        )
        components.preload(*preloaded(facts.attention))  # last, for it takes the longest
        return pipeline

    @property
    def timings(self) -> Timings:
        """Seconds (and peaks, if watched) of engines' loads and runs; grows with every call."""
        return self._components.timings

    def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        references: Sequence[ReferenceSource] | ReferenceImages = (),
        reference_resolution: int = DEFAULT_RESOLUTION,
        guidance: float = 1.0,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        seed: int = 0,
        num_images: int = 1,
        latents: NDArray[np.float32] | None = None,
        progress: bool = True,
    ) -> list[Picture]:
        """Draw pictures of one prompt, after reference images if there are any.

        The same arguments give the same pictures.

        Args:
            prompt: at most 1,100 tokens; may be empty.
            negative_prompt: what to steer away from; needs `guidance` above 1 and may be empty.
            references: at most 10 image files or Pillow images, in the order in which the prompt may number them, or
                what `read_references` made of them.
            reference_resolution: side in pixels of a square of the area that each of them is fitted to.
            guidance: 1 for none; above 1 each step runs twice.
            width: pixels, a multiple of 32; None for 1024, or as the last reference's aspect ratio at that resolution.
            height: likewise.
            steps: None for 40, or for those of a checkpoint with a fixed grid.
            seed: of the noise, the same on every engine.
            num_images: 1 to 4, drawn as one batch from one seed.
            latents: initial noise in place of the seed's, float32 (num_images, tokens, channels).
            progress: show a bar where standard error is a terminal. On engines that take the sampler's steps on a GPU
                it also bounds what is on its way: Ctrl-C ends the work within two steps, without it after the last.

        Raises:
            UsageError: a request that cannot be drawn, before any network runs.
            QwenImageError: an engine failed, or gave values that are not finite.
        """
        check_guidance(guidance, negative_prompt is not None)
        images = (
            references
            if isinstance(references, ReferenceImages)
            else self.read_references(references, reference_resolution)
        )
        width, height = images.picture_size(width, height)
        start = Start.of(self.schedule, self.facts.channels, width, height, steps, seed, num_images, latents)
        prompts = [prompt] if negative_prompt is None else [prompt, negative_prompt]
        shown = None if progress else io.StringIO()  # which is no terminal
        with ProgressBar("reading the prompt", 0, stream=shown):
            conditionings = self._encoder.encode(prompts, images.images)
        with ProgressBar("drawing", start.steps, stream=shown) as bar:
            final = self._final_latents(conditionings, guidance, start, bar.advance, paced=progress)
        with ProgressBar("decoding", 0, stream=shown):
            rgba = self.decode(final, width, height)
        parameters = PictureParameters(
            prompt=prompt,
            negative_prompt=negative_prompt,
            references=" ".join(image.sha256 for image in images.images) or None,
            guidance=float(guidance),
            seed=seed if latents is None else None,
            num_images=num_images,
            image=0,
            steps=start.steps,
            width=width,
            height=height,
            **asdict(self.origin),
            version=version("qwen-image-engine"),
        )
        return [Picture(rgba[image], final[image], replace(parameters, image=image)) for image in range(num_images)]

    def _final_latents(
        self,
        conditionings: Sequence[Conditioning],
        guidance: float,
        start: Start,
        advance: Callable[[], None],
        *,
        paced: bool,
    ) -> NDArray[np.float32]:
        """The latents after the last step, taken on the device where the engine does that."""
        found = final_latents(self._components, self.facts, conditionings, guidance, start, advance if paced else None)
        if found is not None:
            return found
        conditioning, *rest = conditionings
        velocity = denoiser(
            self._components,
            self.facts,
            conditioning,
            rest[0] if rest else None,
            guidance,
            rows=start.rows,
            columns=start.columns,
            num_images=len(start.latents),
        )
        latents = start.latents
        for step in euler(velocity, start.latents, start.sigmas):
            latents = step.latents
            advance()
        return latents

    def read_references(
        self, sources: Sequence[ReferenceSource], resolution: int = DEFAULT_RESOLUTION
    ) -> ReferenceImages:
        """Read and fit reference images, before any network runs.

        Raises:
            UsageError: see `ReferenceImages.read`; or the bundle was exported without what reads them.
        """
        return ReferenceImages.read(sources, resolution, self.facts.vision, self._absent)

    def prefix_tokens(self, prompt: str, references: ReferenceImages = NO_REFERENCES) -> int:
        """How many tokens the target attends to beside its own: `facts.cache_token_bytes` each of keys and values.

        Raises:
            UsageError: the prompt is too long, no valid Unicode, or holds an image's slot.
        """
        return self._encoder.prefix_tokens(prompt, references.images)

    def encode(self, prompt: str, references: ReferenceImages = NO_REFERENCES) -> Conditioning:
        """Encode one prompt with what `read_references` read; the last requests' results are kept and given again.

        Raises:
            UsageError: the prompt is too long, no valid Unicode, or holds an image's slot.
            QwenImageError: there is no memory for the keys and values, an engine failed, or gave values that are not
                finite.
        """
        return self._encoder.encode([prompt], references.images)[0]

    def sample(
        self,
        conditioning: Conditioning,
        *,
        negative: Conditioning | None = None,
        guidance: float = 1.0,
        width: int = 1024,
        height: int = 1024,
        steps: int | None = None,
        seed: int = 0,
        num_images: int = 1,
        latents: NDArray[np.float32] | None = None,
    ) -> Iterator[Step]:
        """Take the steps one by one; leaving the loop cancels, `decode(step.latents, …)` previews.

        Arguments are those of `generate`, with `encode`'s results in place of the prompts.

        Raises:
            UsageError: as in `generate`; raised by this call, before the first step.
            QwenImageError: raised at a step: an engine failed, or its velocity is not finite.
        """
        start = Start.of(self.schedule, self.facts.channels, width, height, steps, seed, num_images, latents)
        velocity = self.denoiser(
            conditioning, negative=negative, guidance=guidance, width=width, height=height, num_images=num_images
        )
        return euler(velocity, start.latents, start.sigmas)

    def denoiser(
        self,
        conditioning: Conditioning,
        *,
        negative: Conditioning | None = None,
        guidance: float = 1.0,
        width: int = 1024,
        height: int = 1024,
        num_images: int = 1,
    ) -> Velocity:
        """Give the velocity alone, a function of latents (num_images, tokens, channels) and sigma.

        Raises:
            UsageError: as in `generate`.
        """
        rows, columns = latent_size(width, height)
        return denoiser(
            self._components,
            self.facts,
            conditioning,
            negative,
            guidance,
            rows=rows,
            columns=columns,
            num_images=num_images,
        )

    def decode(self, latents: NDArray[np.float32], width: int, height: int) -> NDArray[np.uint8]:
        """Turn latents (batch, tokens, channels) into pictures (batch, height, width, 4), one after the other.

        Raises:
            UsageError: they are not the latents of pictures of this size.
            QwenImageError: the decoder failed, or gave values that are not finite.
        """
        rows, columns = latent_size(width, height)
        expected = (rows * columns, self.facts.channels)
        if latents.ndim != 3 or latents.shape[1:] != expected or not len(latents):
            raise UsageError(
                f"latents of {width}x{height} are (batch, {expected[0]}, {expected[1]}), found {latents.shape}"
            )
        check_finite("step", "latents", latents)
        grids = unpack_latents(latents, rows, columns)
        # One at a time: at 2048x2048 the decoder needs gigabytes for each. Each part for all, so that it loads once.
        features = [self._components.run("vae_decoder_mid", {"latents": grid[None]})["features"] for grid in grids]
        for item in features:
            check_finite("vae_decoder_mid", "features", item)
        return np.stack([self._draw(item, width, height) for item in features])

    def _draw(self, features: NDArray[np.float32], width: int, height: int) -> NDArray[np.uint8]:
        """The picture (height, width, 4) of the decoder's features."""

        def draw(part: NDArray[np.float32]) -> NDArray[np.float32]:
            return self._components.run("vae_decoder_up", {"features": part})["image"]

        picture = np.empty((height, width, 4), np.uint8)
        for tile in draw_tiles(draw, features, self.facts.decoder_halo):
            picture[tile.rows, tile.columns] = to_rgba8(tile.image)[0]
        return picture

    def close(self) -> None:
        """Free the engines; whatever runs afterwards loads them again."""
        self._components.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
