"""The pipeline: prompt to picture on any engines, either a bundle's or the reference's PyTorch engines."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qwen_image_engine.engines.core.components import Attention, components_with
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.engines.tensorrt.package import KernelSpecialization
from qwen_image_engine.runtime.bundle.bundle import Bundle
from qwen_image_engine.runtime.component_pool import ComponentPool, Memory
from qwen_image_engine.runtime.conditioning import KEPT_BYTES, Conditioning, PromptEncoder, check_finite
from qwen_image_engine.runtime.denoiser import check_guidance, denoiser
from qwen_image_engine.runtime.device_sampling import device_steps, takes_steps
from qwen_image_engine.runtime.images.mask import Mask, MaskSource
from qwen_image_engine.runtime.images.parameters import PictureOrigin as PictureOrigin
from qwen_image_engine.runtime.images.parameters import PictureParameters, ReferenceOrigin
from qwen_image_engine.runtime.images.picture import Picture
from qwen_image_engine.runtime.images.png import reduced, to_rgba8
from qwen_image_engine.runtime.images.read import ReferenceSource
from qwen_image_engine.runtime.images.reference_image import ReferenceImages
from qwen_image_engine.runtime.model.facts import ModelFacts
from qwen_image_engine.runtime.model.latents import unpack_latents
from qwen_image_engine.runtime.model.size import DEFAULT_RESOLUTION, latent_size
from qwen_image_engine.runtime.model.tiles import draw_tiles
from qwen_image_engine.runtime.request import Request, RequestOptions
from qwen_image_engine.runtime.sampling.inpainting import Inpainting
from qwen_image_engine.runtime.sampling.inputs import SamplingInputs
from qwen_image_engine.runtime.sampling.schedule import ScheduleConfig
from qwen_image_engine.runtime.sampling.solver import Velocity, integrate
from qwen_image_engine.runtime.sampling.spacing import Spacing
from qwen_image_engine.runtime.sampling.step import Step
from qwen_image_engine.runtime.system.cancellation import cancellable
from qwen_image_engine.runtime.system.memory_use import MemoryWatch
from qwen_image_engine.runtime.system.turns import Turns
from qwen_image_engine.runtime.text.embedding import EmbeddingTable
from qwen_image_engine.runtime.timing import Timings

NO_REFERENCES = ReferenceImages()


def preloaded(attention: Attention) -> tuple[str, ...]:
    """Return the names of the components that run without reference images, in the order in which they run."""
    return tuple(row.name for row in components_with(attention) if not row.needs_reference_images)


class QwenImage:
    """A pipeline that generates pictures from prompts.

    `generate` does everything; `prepare` checks a request before that. Callers who own the loop can use the stages:
    `encode`, `sample` (an iterator, so that the caller controls timing and cancelling), `denoiser` (the bare velocity,
    for teacher forcing) and `decode`.

    Threads may share a pipeline: their calls wait for one another, and a loop over `sample` is one call. A run that
    failed or was cancelled leaves nothing behind, and the next one may begin.
    """

    def __init__(
        self,
        components: ComponentPool,
        tokenizer: Tokenizer,
        embeddings: EmbeddingTable,
        schedule: ScheduleConfig,
        facts: ModelFacts,
        origin: PictureOrigin,
        kept_bytes: int = KEPT_BYTES,
        absent: Collection[str] = (),
        cache_token_bytes: int | None = None,
    ) -> None:
        self.schedule = schedule
        self.facts = facts
        self.origin = origin
        self._absent = absent
        self._components = components
        self._encoder = PromptEncoder(
            components, tokenizer, embeddings, facts, origin.engine, kept_bytes, cache_token_bytes
        )
        self._turns = Turns()
        self._closed = False

    @classmethod
    def load(
        cls,
        bundle: str | Path | Bundle,
        engine: str = "onnxruntime",
        memory: Memory = "resident",
        threads: int | None = None,
        watch: MemoryWatch | None = None,
        kept_bytes: int = KEPT_BYTES,
        kernel_specialization: KernelSpecialization | None = None,
    ) -> Self:
        """Open a bundle and load its engines.

        Args:
            bundle: the bundle's folder, or an open bundle.
            engine: name of a backend, a key of `engines.backends.BACKENDS`.
            memory: memory policy. "resident" loads every engine now and keeps it; engines that only reference images
                need are loaded with the first reference image. "sequential" loads each engine when it runs and frees it
                before the next.
            threads: threads of one engine; None for every core.
            watch: watch of this process's memory, so that `timings` holds peaks too; the caller closes it.
            kept_bytes: limit of the cache of encodings, keys and values [bytes]. Values of the last request are never
                evicted. A request with a cached prompt and reference images costs steps and decoding alone.
            kernel_specialization: when tensorrt-rtx compiles kernels for the shapes of a call. "lazy" compiles in the
                background while other kernels serve, which may round differently; "eager" compiles first. None for
                "lazy", and for other engines.

        Raises:
            UsageError: the engine or the memory policy is unknown, the engine does not run the bundle's graphs, the
                number of threads is out of range, or `kernel_specialization` is unknown or the engine has none.
            QwenImageError: the bundle is missing, changed, incomplete or of another schema version, the engine's
                package is not installed, or memory does not suffice.
        """
        pipeline = cls.open(bundle, engine, memory, threads, watch, kept_bytes, kernel_specialization)
        pipeline.preload()
        return pipeline

    @classmethod
    def open(
        cls,
        bundle: str | Path | Bundle,
        engine: str = "onnxruntime",
        memory: Memory = "resident",
        threads: int | None = None,
        watch: MemoryWatch | None = None,
        kept_bytes: int = KEPT_BYTES,
        kernel_specialization: KernelSpecialization | None = None,
    ) -> Self:
        """Open a bundle without loading an engine, so that a request can be prepared before gigabytes are read.

        `preload`, or the first run of a component, loads its engine. `load` describes the arguments.

        Raises:
            UsageError: the memory policy is unknown.
            QwenImageError: the bundle is missing, changed, incomplete or of another schema version.
        """
        opened = bundle if isinstance(bundle, Bundle) else Bundle.open(Path(bundle))
        load = partial(opened.load_engine, backend=engine, threads=threads, kernel_specialization=kernel_specialization)
        return cls(
            ComponentPool(load, memory, watch),
            opened.tokenizer,
            opened.embeddings(),
            opened.schedule(),
            opened.manifest.facts,
            PictureOrigin(
                engine, opened.manifest.precision, opened.manifest.checkpoint.name, opened.manifest.fingerprint
            ),
            kept_bytes,
            absent=opened.manifest.absent_for_references,
            cache_token_bytes=opened.manifest.cache_token_bytes,
        )

    def preload(self) -> None:
        """Load the engines of text-to-image, if the memory policy is "resident".

        Raises:
            UsageError: the engine is unknown or does not run the bundle's graphs, or the number of threads is out of
                range.
            QwenImageError: an engine's package is not installed, its file is damaged, or memory does not suffice.
        """
        with self._turn():
            self._components.preload(*preloaded(self.facts.attention))

    @property
    def timings(self) -> Timings:
        """Seconds (and peaks, if watched) of engines' loads and runs, and of previews. Every call adds entries."""
        return self._components.timings

    def prepare(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        references: Sequence[ReferenceSource] | ReferenceImages = (),
        reference_resolution: int = DEFAULT_RESOLUTION,
        first_frame: bool = False,
        mask: MaskSource | None = None,
        guidance: float = 1.0,
        width: int | None = None,
        height: int | None = None,
        steps: int | None = None,
        solver: str = "euler",
        sigmas: Spacing = None,
        seed: int = 0,
        num_images: int = 1,
        latents: NDArray[np.float32] | None = None,
    ) -> Request:
        """Check a request and return it. No network runs or is loaded.

        Everything that `generate` could refuse is refused here.

        Args:
            prompt: text of at most 1,100 tokens; may be empty.
            negative_prompt: prompt to steer away from; needs `guidance` above 1 and may be empty.
            references: at most 10 image files or Pillow images, in the order in which the prompt may number them, or
                the result of `read_references`.
            reference_resolution: side in pixels of a square of the area that each reference image is fitted to.
            first_frame: whether to take the first frame of an animated reference image, which is refused otherwise.
            mask: mask of the first reference image, an image file or a Pillow image with alpha (PNG, WebP) of that
                image's own size. Alpha 0 is edited, 255 stays as it is; between them both are mixed. The first
                reference image then decides the aspect ratio, in place of the last one.
            guidance: guidance weight. 1 for none; above 1 each step runs twice.
            width: width in pixels, a multiple of 32. None for the width that keeps the aspect ratio of the last
                reference image at `height`, its fitted width if `height` is None too, or 1024 without reference images.
            height: height in pixels, likewise.
            steps: number of steps. None for 40, or for the length of `sigmas` or of the checkpoint's fixed grid.
            solver: name of a solver, a key of `runtime.sampling.solver.SOLVERS`. heun evaluates the network twice a
                step, the others once.
            sigmas: noise levels without the final 0, which the checkpoint's shift and stretch still move; or the name
                of a spacing, a key of `runtime.sampling.spacing.SPACINGS`. None for the checkpoint's own.
            seed: seed of the noise, the same on every engine.
            num_images: number of pictures, 1 to 4, drawn as one batch from one seed.
            latents: initial noise instead of noise from the seed, float32 (num_images, tokens, channels).

        Raises:
            UsageError: the request is invalid.
            QwenImageError: there is no memory for the request's keys and values, or the pipeline is closed.
        """
        self._check_open()
        check_guidance(guidance, negative_prompt is not None)
        images = (
            references
            if isinstance(references, ReferenceImages)
            else self.read_references(references, reference_resolution, first_frame, for_mask=mask is not None)
        )
        width, height = images.picture_size(width, height)
        inputs = SamplingInputs.prepare(
            self.schedule, self.facts.channels, width, height, steps, seed, num_images, latents, solver, sigmas
        )
        opened = None if mask is None else Mask.read(mask, images, width, height)
        prompts = [prompt] if negative_prompt is None else [prompt, negative_prompt]
        tokens, cache_bytes = self._encoder.check(prompts, images.images)
        copies = 1 if num_images == 1 else 1 + num_images  # the batch's own, beside those that are kept
        return Request(
            prompt,
            negative_prompt,
            replace(images, first=None),  # its pixels are in the mask, at the picture's size
            opened,
            float(guidance),
            width,
            height,
            inputs,
            tokens,
            copies * cache_bytes,
        )

    def generate(
        self,
        prompt: Request | str,
        *,
        on_step: Callable[[Step], None] | None = None,
        **options: Unpack[RequestOptions],
    ) -> list[Picture]:
        """Generate pictures of one prompt, conditioned on reference images if there are any.

        The same request gives the same pictures.

        Args:
            prompt: the text, or the result of `prepare`.
            on_step: function to call after each step. If it raises `Cancelled` or any other error, the run ends.
            options: other arguments of `prepare`; allowed only if `prompt` is a text.

        Raises:
            UsageError: the request cannot be drawn, or options are given besides a prepared request; raised before any
                network runs.
            Cancelled: `request.cancel()` was called, or `on_step` raised it.
            QwenImageError: an engine failed or returned values that are not finite, or the pipeline is closed.
        """
        if isinstance(prompt, Request):
            if options:
                raise UsageError(f"{', '.join(options)} beside a prepared request: give them to prepare")
            request = prompt
        else:
            request = self.prepare(prompt, **options)
        with cancellable(request.cancellation), self._turn():
            inpainting = self._inpainting(request)
            conditionings = self._encoder.encode(request.prompts, request.references.images)
            decode = partial(self._preview, width=request.width, height=request.height, mask=request.mask)
            latents = request.inputs.latents
            for step in self._steps(conditionings, request.guidance, request.inputs, inpainting):
                request.cancellation.check()
                if on_step is not None:
                    on_step(replace(step, _decode=decode))
                if step.index + 1 == step.steps:
                    latents = step.latents
            request.cancellation.check()
            rgba = self.decode(latents, request.width, request.height)
            if request.mask is not None:
                rgba = request.mask.keep_base(rgba)
        return self._pictures(request, rgba, latents)

    def _pictures(self, request: Request, rgba: NDArray[np.uint8], latents: NDArray[np.float32]) -> list[Picture]:
        inputs = request.inputs
        parameters = PictureParameters(
            prompt=request.prompt,
            negative_prompt=request.negative_prompt,
            references=tuple(ReferenceOrigin(image.name, image.sha256) for image in request.references.images),
            mask=None if request.mask is None else ReferenceOrigin(request.mask.name, request.mask.sha256),
            reference_resolution=request.references.resolution,
            guidance=request.guidance,
            seed=inputs.seed if inputs.given is None else None,
            num_images=inputs.num_images,
            image=0,
            steps=inputs.steps,
            solver=inputs.solver.name,
            evaluations=inputs.evaluations,
            sigmas=inputs.spacing,
            width=request.width,
            height=request.height,
            **asdict(self.origin),
            version=version("qwen-image-engine"),
        )
        return [
            Picture(rgba[image], latents[image], replace(parameters, image=image)) for image in range(inputs.num_images)
        ]

    def _inpainting(self, request: Request) -> Inpainting | None:
        """Return the latents outside of a request's mask. Encode its base if no earlier request has."""
        if request.mask is None:
            return None
        base = self._encoder.latents(request.mask.base)
        return Inpainting(request.mask.open_latents, base, request.inputs.latents)

    def _steps(
        self,
        conditionings: Sequence[Conditioning],
        guidance: float,
        inputs: SamplingInputs,
        inpainting: Inpainting | None = None,
    ) -> Iterator[Step]:
        """Take the steps, on the device if the engine supports it. With a mask the host takes them on every engine.

        Latents are small, a megabyte at 1024x1024 in the released model, and the device's kernel stays as it is.
        """
        if inpainting is None and takes_steps(self._components, self.facts):
            return device_steps(self._components, self.facts, conditionings, guidance, inputs)
        conditioning, *rest = conditionings
        velocity = denoiser(
            self._components,
            self.facts,
            conditioning,
            rest[0] if rest else None,
            guidance,
            rows=inputs.rows,
            columns=inputs.columns,
            num_images=inputs.num_images,
        )
        return integrate(velocity, inputs.latents, inputs.stages, inpainting)

    def _preview(
        self, latents: NDArray[np.float32], scale: float, *, width: int, height: int, mask: Mask | None = None
    ) -> NDArray[np.uint8]:
        """Decode clean latents (batch, tokens, channels), and reduce the pictures to `scale`; see `Step.preview`."""
        rows, columns = latent_size(width, height)
        with self.timings.measure_preview():
            pictures = self._decode(unpack_latents(latents, rows, columns))
            if mask is not None:
                pictures = mask.keep_base(pictures)
            return pictures if scale == 1 else np.stack([reduced(picture, round(1 / scale)) for picture in pictures])

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Wait for other threads, then hold the engines for the block.

        Raises:
            QwenImageError: the pipeline is closed.
            Cancelled: the request was cancelled while it waited.
        """
        with self._turns.take():
            self._check_open()
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise QwenImageError("this pipeline is closed; load it again with QwenImage.load")

    def read_references(
        self,
        sources: Sequence[ReferenceSource],
        resolution: int = DEFAULT_RESOLUTION,
        first_frame: bool = False,
        for_mask: bool = False,
    ) -> ReferenceImages:
        """Read and fit reference images. No network runs. `prepare` describes the arguments.

        With `for_mask`, keep the first image's own pixels, which a mask needs, and take the default size from it.

        Raises:
            UsageError: there are too many images, an image cannot be read or fitted, or the bundle was exported without
                components that read them.
        """
        return ReferenceImages.read(sources, resolution, self.facts.vision, self._absent, first_frame, for_mask)

    def prefix_tokens(self, prompt: str, references: ReferenceImages = NO_REFERENCES) -> int:
        """Return the number of prefix tokens that the target attends to. Each takes `facts.cache_token_bytes` in fp32.

        Raises:
            UsageError: the prompt is too long, is not valid Unicode, or contains an image slot.
        """
        return self._encoder.prefix_tokens(prompt, references.images)

    def encode(self, prompt: str, references: ReferenceImages = NO_REFERENCES) -> Conditioning:
        """Encode one prompt with the reference images of `read_references`. Reuse cached results of earlier requests.

        Raises:
            UsageError: the prompt is too long, is not valid Unicode, or contains an image slot.
            QwenImageError: there is no memory for the keys and values, an engine failed, or an engine returned values
                that are not finite.
        """
        with self._turn():
            return self._encoder.encode([prompt], references.images)[0]

    def encode_each(self, requests: Sequence[tuple[str, ReferenceImages]]) -> list[Conditioning]:
        """Encode several prompts, each with its own reference images, and load each component once for all of them.

        The results of all prompts are in memory together.

        Raises:
            UsageError: a prompt is too long, is not valid Unicode, or contains an image slot.
            QwenImageError: there is no memory for the keys and values, an engine failed, or an engine returned values
                that are not finite.
        """
        with self._turn():
            return self._encoder.encode_each([(prompt, references.images) for prompt, references in requests])

    def sample(
        self,
        conditioning: Conditioning,
        *,
        negative: Conditioning | None = None,
        guidance: float = 1.0,
        width: int = 1024,
        height: int = 1024,
        steps: int | None = None,
        solver: str = "euler",
        sigmas: Spacing = None,
        seed: int = 0,
        num_images: int = 1,
        latents: NDArray[np.float32] | None = None,
    ) -> Iterator[Step]:
        """Take the steps one by one. Leaving the loop cancels; `step.preview()` shows the picture so far.

        Other threads wait until the loop has ended. `prepare` describes the arguments; the results of `encode` replace
        the prompts.

        Raises:
            UsageError: the request is invalid; raised by this call, before the first step.
            QwenImageError: the pipeline is closed (raised by this call), or at a step an engine failed or the velocity
                is not finite.
        """
        self._check_open()
        inputs = SamplingInputs.prepare(
            self.schedule, self.facts.channels, width, height, steps, seed, num_images, latents, solver, sigmas
        )
        check_guidance(guidance, negative is not None)
        conditionings = [conditioning] if negative is None else [conditioning, negative]
        return self._sample(conditionings, guidance, inputs, width, height)

    def _sample(
        self, conditionings: Sequence[Conditioning], guidance: float, inputs: SamplingInputs, width: int, height: int
    ) -> Iterator[Step]:
        decode = partial(self._preview, width=width, height=height)
        with self._turn():
            for step in self._steps(conditionings, guidance, inputs):
                yield replace(step, _decode=decode)

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
        """Return the velocity alone, as a function of latents (num_images, tokens, channels) and sigma.

        Raises:
            UsageError: the size is invalid, or guidance and negative prompt do not go together.
            QwenImageError: there is no memory for a batch's copies of the keys and values.
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
        """Decode latents (batch, tokens, channels) to pictures (batch, height, width, 4), one after the other.

        Raises:
            UsageError: the size is invalid, or the latents do not have the shape of this size.
            QwenImageError: the latents are not finite, the decoder failed or returned values that are not finite, or
                the pipeline is closed.
        """
        rows, columns = latent_size(width, height)
        expected = (rows * columns, self.facts.channels)
        if latents.ndim != 3 or latents.shape[1:] != expected or not len(latents):
            raise UsageError(
                f"latents of {width}x{height} are (batch, {expected[0]}, {expected[1]}), found {latents.shape}"
            )
        check_finite("step", "latents", latents)
        with self._turn():
            return self._decode(unpack_latents(latents, rows, columns))

    def _decode(self, grids: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Decode latents (batch, channels, rows, columns) to pictures (batch, height, width, 4)."""
        # One at a time: at 2048x2048 the decoder needs gigabytes for each. Each part for all, so that it loads once.
        features = [self._components.run("vae_decoder_mid", {"latents": grid[None]})["features"] for grid in grids]
        for item in features:
            check_finite("vae_decoder_mid", "features", item)
        rows, columns = grids.shape[2:]
        return np.stack([self._draw(item, 16 * columns, 16 * rows) for item in features])

    def _draw(self, features: NDArray[np.float32], width: int, height: int) -> NDArray[np.uint8]:
        """Draw the picture (height, width, 4) from the decoder's features."""

        def draw(part: NDArray[np.float32]) -> NDArray[np.float32]:
            return self._components.run("vae_decoder_up", {"features": part})["image"]

        picture = np.empty((height, width, 4), np.uint8)
        for tile in draw_tiles(draw, features, self.facts.decoder_halo):
            picture[tile.rows, tile.columns] = to_rgba8(tile.image)[0]
        return picture

    def free(self) -> None:
        """Free the engines and the cached encodings, after the calls of other threads end. A later run loads again."""
        with self._turn():
            self._components.close()
            self._encoder.forget()

    def close(self) -> None:
        """Free the engines, after the calls of other threads end. Closing twice is allowed; any other call raises."""
        with self._turns.take():
            self._closed = True
            self._components.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
