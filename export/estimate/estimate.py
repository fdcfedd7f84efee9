"""The estimate of an export, and of the memory for a picture of its bundle, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qwen_image_engine.calibration.quantise.network import check_rules, quantised_networks
from qwen_image_engine.export.estimate.sizes import (
    ExportEstimate,
    Weights,
    check_disk,
    check_memory,
    estimate_cache,
    estimate_export,
    estimate_seconds,
    estimate_stages,
)
from qwen_image_engine.export.targets import Target
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.runtime.images.fit import reference_size
from qwen_image_engine.runtime.model.size import latent_size


@dataclass(frozen=True)
class PictureRequest:
    """The picture whose memory is estimated.

    Attributes:
        size: width and height in pixels.
        references: number of reference images.
        reference_resolution: side in pixels of the square that each reference image is.
    """

    size: tuple[int, int]
    references: int
    reference_resolution: int


@dataclass(frozen=True)
class Estimate:
    """An estimate of an export, and of a picture that its bundle draws.

    Attributes:
        plan: estimate of the export's bytes, by network.
        free_bytes: free bytes of the bundle's disk; None if no folder is named.
        export_seconds: seconds that the export takes on this machine.
        size: width and height of the picture in pixels.
        references: width and height of each reference image in pixels, as it is fitted.
        prefix_tokens: number of tokens before the target with a prompt of usual length.
        cache_bytes: bytes of the keys and values of the prefix tokens.
        stages: bytes of a process on a CPU in each stage of the picture; empty for a GPU.
    """

    plan: ExportEstimate
    free_bytes: int | None
    export_seconds: float
    size: tuple[int, int]
    references: tuple[tuple[int, int], ...]
    prefix_tokens: int
    cache_bytes: int
    stages: dict[str, int]

    @property
    def resident_bytes(self) -> int:
        """Bytes of the weights that `run --memory resident` holds for the picture."""
        return self.plan.resident_bytes + (self.plan.reference_bytes if self.references else 0)

    @property
    def taking_turns_bytes(self) -> int:
        """Bytes of the weights on a GPU that holds prefix or step, not both."""
        networks = self.plan.networks
        return sum(item.engine_bytes for item in networks if self.references or item.network != "vision")

    @property
    def cache_token_bytes(self) -> int:
        """Bytes of the keys and values of one prefix token."""
        return self.cache_bytes // self.prefix_tokens if self.prefix_tokens else 0

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, the keys of `plan` first, without the names of the keys and values in FP8."""
        return {
            **{key: value for key, value in asdict(self.plan).items() if key != "codes"},
            "stored_bytes": self.plan.stored_bytes,
            "bundle_bytes": self.plan.bundle_bytes,
            "export_seconds": self.export_seconds,
            "size": self.size,
            "references": self.references,
            "prefix_tokens": self.prefix_tokens,
            "cache_bytes": self.cache_bytes,
            "cache_token_bytes": self.cache_token_bytes,
            "stages": self.stages,
            "free_bytes": self.free_bytes,
        }


def estimate(
    checkpoint: Checkpoint,
    target: Target,
    picture: PictureRequest,
    *,
    weights: Weights = "copy",
    components: Sequence[str] | None = None,
    bundle: Path | None = None,
) -> Estimate:
    """Estimate the export of `components` (by default all) of a checked checkpoint, and a picture that they draw.

    Args:
        checkpoint: the opened checkpoint.
        target: row of the target and precision, as chosen.
        picture: size and reference images of the picture.
        weights: "copy" for copies in the bundle, or "link" for hard links to the checkpoint's files.
        components: components of the bundle; None for all.
        bundle: folder of the bundle, for the free disk; None if no folder is named.

    Raises:
        UsageError: a pattern of a recipe matches nothing, the transformer has no such block, `weights` is "link" for a
            checkpoint with merged adapters, or no picture has that size.
        QwenImageError: memory or disk are too small for the export.
    """
    check_rules(checkpoint, target.quantisation, target.precision)
    quantised = quantised_networks(checkpoint, target.quantisation)
    plan = estimate_export(checkpoint, target, quantised, weights, components)
    check_memory(plan)
    free_bytes = None if bundle is None else check_disk(plan, bundle)
    width, height = picture.size
    latent_size(width, height)
    references = [_fitted(checkpoint, picture.reference_resolution)] * picture.references
    stages = {} if target.on_gpu else estimate_stages(checkpoint, plan, width, height, references)
    tokens, cache_bytes = estimate_cache(checkpoint, plan, references)
    seconds = estimate_seconds(checkpoint, target, quantised, plan)
    return Estimate(plan, free_bytes, seconds, picture.size, tuple(references), tokens, cache_bytes, stages)


def _fitted(checkpoint: Checkpoint, resolution: int) -> tuple[int, int]:
    """Return the width and height of a square reference image as the runtime fits it."""
    facts = checkpoint.image_processor
    side, _ = reference_size(
        resolution, resolution, resolution, name="a square", min_pixels=facts.min_pixels, max_pixels=facts.max_pixels
    )
    return side, side
