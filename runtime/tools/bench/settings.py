"""The settings of a benchmark, and the command line that repeats it."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.sampling.spacing import ChosenLevels, levels_text


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _name(value: object) -> bool:
    return isinstance(value, str)


def _pair(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_whole, value))


_LISTED: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "engines": ("engines' names", _name),
    "baselines": ("baselines' names", _name),
    "sizes": ("(width, height) in pixels", _pair),
    "steps": ("whole numbers, or None for the checkpoint's own", lambda value: value is None or _whole(value)),
    "solvers": ("solvers' names", _name),
    "batches": ("whole numbers", _whole),
    "references": ("whole numbers", _whole),
}


@dataclass(frozen=True)
class Settings:
    """Settings of a benchmark after defaults.

    Attributes:
        bundle: folder of the bundle.
        checkpoint: checkpoint of the baselines; None for the checkpoint that the manifest names.
        engines: backends that run the bundle.
        baselines: contenders that the engines are compared with.
        sizes: (width, height) in pixels.
        steps: steps of the sampler; None for the checkpoint's default.
        batches: numbers of images drawn at once.
        references: numbers of reference images.
        reference_resolution: side of each reference image [pixels].
        rounds: number of counted rounds. Every contender draws every case once in each, after one round to warm up.
        threads: threads of one contender; None for every core.
        memory: "resident" or "sequential".
        output: file to which the command wrote the result; None if it wrote no file.
        report: folder to which the command wrote a page; None if it wrote no page.
        kernel_specialization: when tensorrt-rtx compiles kernels for the shapes of a call; None for its default.
        solvers: solvers of the sampling equation.
        sigmas: noise levels or the name of a spacing; None for the checkpoint's own.
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
    output: str | None = None
    report: str | None = None
    kernel_specialization: str | None = None
    solvers: tuple[str, ...] = ("euler",)
    sigmas: ChosenLevels = None

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Return settings from the lists and numbers of a caller.

        Raises:
            UsageError: a value is not a list of the expected items, or not a whole number.
        """
        for name, (what, is_one) in _LISTED.items():
            if name not in given:  # a field with a default
                continue
            items = given[name]
            if isinstance(items, str) or not isinstance(items, Iterable):
                raise UsageError(f"{name} {items!r}: expected a list of {what}")
            given[name] = tuple(items)
            wrong = [item for item in given[name] if not is_one(item)]
            if wrong:
                raise UsageError(f"{name}: {wrong[0]!r} stands among them, expected {what}")
        given["sizes"] = tuple((width, height) for width, height in given["sizes"])
        for name in ("reference_resolution", "rounds", "threads"):
            if not _whole(given[name]) and not (name == "threads" and given[name] is None):
                raise UsageError(f"{name} {given[name]!r}: expected a whole number")
        return cls(**given)

    def command(self) -> str:
        """Return the command line that repeats the benchmark."""
        words = ["qwen-image", "bench", self.bundle]
        words += ["--engine", *self.engines]
        if self.baselines:
            words += ["--baseline", ",".join(self.baselines)]
        if self.checkpoint is not None:
            words += ["-m", self.checkpoint]
        words += ["--size", *(f"{width}x{height}" for width, height in self.sizes)]
        if self.steps != (None,):
            words += ["--steps", *map(str, self.steps)]
        if self.solvers != ("euler",):
            words += ["--solver", *self.solvers]
        if self.sigmas is not None:
            words += ["--sigmas", levels_text(self.sigmas)]
        words += ["--batch", *map(str, self.batches), "--references", *map(str, self.references)]
        words += ["--reference-resolution", str(self.reference_resolution), "--rounds", str(self.rounds)]
        if self.threads is not None:
            words += ["--threads", str(self.threads)]
        words += ["--memory", self.memory]
        if self.kernel_specialization is not None:
            words += ["--kernel-specialization", self.kernel_specialization]
        for flag, path in (("--output", self.output), ("--report", self.report)):
            words += [] if path is None else [flag, path]
        return shlex.join(words)
