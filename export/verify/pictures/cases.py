"""The requests whose pictures are measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Literal

from qwen_image_engine.export.verify.judge import is_shapes
from qwen_image_engine.export.verify.recording import Case, edit_case
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.shapes.judge.evaluate import KINDS, edit_references, held_out, held_out_edits

Kind = Literal["prompts", "edits"]

SIZE = (256, 256)
"""Size of a picture if the caller names none [pixels]."""

SHAPES_PROMPTS, SHAPES_EDITS = 8, 4
"""Numbers of held-out prompts and edits of `shapes`."""

_PROMPTS = (
    "a red fox in fresh snow at the edge of a birch forest, early morning light",
    'a shop window with the words "OPEN LATE" in red neon, rain on the glass',
    "一只橘猫坐在窗台上，窗外下着雨，水彩画",
)


def kind(case: Case) -> Kind:
    """Return the kind of a request: figures of prompts and of edits are apart."""
    return "edits" if case.references else "prompts"


def given_cases(prompts: Sequence[str], size: tuple[int, int]) -> tuple[Case, ...]:
    """Return a request for each prompt of a caller, with seeds from 0."""
    return tuple(Case(f"prompt {number}", text, *size, seed=number - 1) for number, text in enumerate(prompts, 1))


def default_cases(checkpoint: Checkpoint, size: tuple[int, int], *, references: bool) -> tuple[Case, ...]:
    """Return requests for a checkpoint: held-out ones of `shapes`, or a few that suit any other.

    With `references` there are edits too.
    """
    if is_shapes(checkpoint):
        return tuple(_shapes_cases(size, references=references))
    edit = replace(edit_case(), width=size[0], height=size[1])
    return (*given_cases(_PROMPTS, size), *([edit] if references else []))


def _shapes_cases(size: tuple[int, int], *, references: bool) -> Iterator[Case]:
    counts = next(iter(KINDS.values()))
    for number, item in enumerate(held_out(counts, SHAPES_PROMPTS), 1):
        yield Case(f"prompt {number}", item.prompt, *size, item.seed)
    for number, edit in enumerate(islice(held_out_edits(SHAPES_EDITS), SHAPES_EDITS if references else 0), 1):
        images, resolution = edit_references(replace(edit, width=size[0], height=size[1]))
        yield Case(f"edit {number}", edit.prompt, *size, edit.seed, tuple(images), resolution)
