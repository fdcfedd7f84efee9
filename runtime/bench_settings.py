"""What a benchmark was asked for, and the command that asks for the same."""

from __future__ import annotations

import shlex
from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """What was asked for, after defaults.

    Attributes:
        bundle: its folder.
        checkpoint: of the baselines, None for the one that the manifest names.
        engines: what runs the bundle.
        baselines: what they are compared with.
        sizes: (width, height) in pixels.
        steps: None for the checkpoint's own.
        batches: images drawn at once.
        references: numbers of reference images.
        reference_resolution: side in pixels that each of them has.
        rounds: in which every way draws every case once, after one to warm up.
        threads: of one way, None for every core.
        memory: "resident" or "sequential".
    """

    bundle: str
    checkpoint: str | None
    engines: tuple[str, ...]
    baselines: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    steps: tuple[int | None, ...]
    batches: tuple[int, ...]
    references: tuple[int, ...]
    reference_resolution: int
    rounds: int
    threads: int | None
    memory: str

    def command(self) -> str:
        """The command that asks for the same."""
        words = ["qwen-image", "bench", self.bundle]
        words += ["--engine", *self.engines]
        if self.baselines:
            words += ["--baseline", ",".join(self.baselines)]
        if self.checkpoint is not None:
            words += ["-m", self.checkpoint]
        words += ["--size", *(f"{width}x{height}" for width, height in self.sizes)]
        if self.steps != (None,):
            words += ["--steps", *map(str, self.steps)]
        words += ["--batch", *map(str, self.batches), "--references", *map(str, self.references)]
        words += ["--reference-resolution", str(self.reference_resolution), "--rounds", str(self.rounds)]
        if self.threads is not None:
            words += ["--threads", str(self.threads)]
        return shlex.join([*words, "--memory", self.memory])
