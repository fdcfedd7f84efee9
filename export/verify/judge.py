"""Scores of a bundle's pictures by the judge of `shapes`, beside the reference's scores.

A score counts the held-out prompts that the pictures fulfil.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.shapes.config import encoder_config, transformer_config
from qwen_image_engine.reference.shapes.judge.evaluate import (
    KINDS,
    EditScore,
    Sampling,
    Score,
    evaluate,
    evaluate_edits,
)
from qwen_image_engine.runtime.pipeline import QwenImage

EDITS = "edits"


@dataclass(frozen=True)
class PictureScores:
    """The scores for one kind of held-out prompts, drawn by bundle and reference from the same seeds.

    The kind is one of `shapes.judge.evaluate.KINDS`, or "edits".
    """

    kind: str
    engine: Score | EditScore
    reference: Score | EditScore

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON."""
        sides = {"engine": self.engine, "reference": self.reference}
        return {"kind": self.kind, **{side: asdict(score) | {"rate": score.rate} for side, score in sides.items()}}


def is_shapes(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is `shapes`: text encoder and transformer have the sizes of the training recipe.

    The sizes are the same after new training or a copy to another folder, and no other checkpoint has them.
    """
    recipe = encoder_config(checkpoint.text_encoder.vocab_size), transformer_config()
    return (checkpoint.text_encoder, checkpoint.transformer) == recipe


def check_judged(checkpoint: Checkpoint, prompts: int) -> None:
    """Raise if the checkpoint is not `shapes`, the only one that the judge can score.

    Raises:
        UsageError: the checkpoint is not `shapes`, or there are no prompts.
    """
    if prompts < 1:
        raise UsageError(f"--judge {prompts}: expected the number of prompts of each kind, 1 or more")
    if not is_shapes(checkpoint):
        raise UsageError(
            f"--judge: {checkpoint.name} is not `shapes`, whose pictures alone the judge knows (docs/shapes.md); "
            "leave --judge out"
        )


def judge_pictures(
    pipeline: QwenImage, prompts: int, *, edits: bool, sampling: Sampling | None = None
) -> dict[str, Score | EditScore]:
    """Return the scores of `prompts` held-out prompts of each kind.

    With `edits` there are the scores of as many edits too. `sampling` holds options of every request.

    Raises:
        QwenImageError: an engine failed.
    """
    asked: Sampling = sampling or {}
    scores: dict[str, Score | EditScore] = {
        kind: evaluate(pipeline, counts, prompts, **asked) for kind, counts in KINDS.items()
    }
    if edits:
        scores[EDITS] = evaluate_edits(pipeline, prompts, **asked)
    return scores
