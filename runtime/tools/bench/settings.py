"""What a benchmark was asked for, and the command that asks for the same."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from qwen_image_engine.engines.core.errors import UsageError


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
    "batches": ("whole numbers", _whole),
    "references": ("whole numbers", _whole),
}


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
        output: file that the command wrote the result to, None for none.
        report: folder that it wrote a page to, likewise.
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

    @classmethod
    def of(cls, **given: Any) -> Self:
        """Settings of lists and numbers as a caller gives them.

        Raises:
            UsageError: one is no list of what it should hold, or no whole number.
        """
        for name, (what, is_one) in _LISTED.items():
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
        words += ["--memory", self.memory]
        for flag, path in (("--output", self.output), ("--report", self.report)):
            words += [] if path is None else [flag, path]
        return shlex.join(words)
