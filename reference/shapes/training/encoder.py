"""The second stage of the recipe: the text encoder learns to read before the transformer learns to draw.

The released encoder was a language model first. The encoder here learns to answer what is at each of the nine places
and what the ground is: a question attends to the encoder's states, much as the transformer's target tokens will. The
questions are then dropped.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from qwen_image_engine.reference.shapes.scenes.prompts import write_prompt
from qwen_image_engine.reference.shapes.scenes.scene import (
    COLOURS,
    GROUNDS,
    PLACES,
    SHAPES,
    TRANSPARENT,
    WORDS,
    Scene,
    split_scene,
)
from qwen_image_engine.reference.shapes.training.muon import Muon
from qwen_image_engine.reference.shapes.training.precision import autocast
from qwen_image_engine.reference.shapes.training.rate import share_of_rate
from qwen_image_engine.reference.shapes.training.text_batch import Reader, tokenize_batch

STEPS = 700
BATCH = 64
MATRIX_RATE, OTHER_RATE = 2e-3, 3e-3

# Answers: nothing, a coloured shape, a word; then the grounds; then, for edits, that it is as in the reference.
_GROUND = 1 + len(SHAPES) * len(COLOURS) + len(WORDS)
SAME = _GROUND + len(GROUNDS) + 1
_ANSWERS = SAME + 1


class Questions(nn.Module):
    """A question for each place and a question for the ground, which attend to the encoder's states."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(PLACES) + 1, width))
        self.keys = nn.Linear(width, width, bias=False)
        self.answers = nn.Linear(width, _ANSWERS)
        self.nothing = nn.Parameter(torch.randn(width))  # what a question finds whose place the prompt does not name

    def forward(self, states: Tensor, valid: Tensor) -> Tensor:
        """Map states (B, T, C) and the mask of the prompt's tokens (B, T) -> answers (B, 10, answers)."""
        states = F.rms_norm(states, states.shape[-1:])
        states = torch.cat([states, self.nothing.expand(states.shape[0], 1, -1)], dim=1)
        scores = self.queries @ self.keys(states).mT * states.shape[-1] ** -0.5  # (B, 10, T + 1)
        weights = scores.masked_fill(~F.pad(valid, (0, 1), value=True)[:, None], -torch.inf).softmax(-1)
        answers: Tensor = self.answers(weights @ states)
        return answers


def train_reader(reader: Reader, tokenizer: Tokenizer, seed: int, device: str, report: Callable[[str], None]) -> None:
    """Train embedding table and encoder in place on prompts of the training part.

    Args:
        reader: Reader to train.
        tokenizer: Tokenizer from `train_tokenizer`.
        seed: Seed of prompts and questions.
        device: Device to train on; the reader is left on the CPU.
        report: Function called with a line of progress every 100 steps.

    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    reader.to(device)
    questions = Questions(reader.encoder.config.hidden_size).to(device)
    matrices = [p for p in reader.encoder.parameters() if p.ndim == 2]
    others = [p for p in reader.encoder.parameters() if p.ndim == 1]
    others += [*reader.embed_tokens.parameters(), *questions.parameters()]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(matrices, MATRIX_RATE, weight_decay=0.05),
        torch.optim.AdamW(others, OTHER_RATE, betas=(0.9, 0.98)),
    ]
    schedules = [torch.optim.lr_scheduler.LambdaLR(o, lambda step: share_of_rate(step, STEPS)) for o in optimizers]
    for step in range(STEPS):
        scenes = [split_scene(rng, held_out=False) for _ in range(BATCH)]
        text = tokenize_batch(tokenizer, [write_prompt(s, rng) for s in scenes], device)
        with autocast(device):
            states = reader(text).float()
        valid = torch.arange(states.shape[1], device=device) < torch.tensor(text.lengths, device=device)[:, None]
        answers = questions(states, valid)
        wanted = torch.from_numpy(np.stack([facts(s) for s in scenes])).to(device)
        loss = F.cross_entropy(answers.flatten(0, 1), wanted.flatten())
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        if step % 100 == 99:
            right = (answers.argmax(-1) == wanted).all(-1).float().mean()
            report(f"reader {step + 1}/{STEPS}  loss {loss.item():.4f}  whole scenes right {right:.2f}")
    reader.cpu()


def facts(scene: Scene) -> NDArray[np.int64]:
    """Return the answer for each place of a scene, then for its ground: (10,)."""
    facts = dict.fromkeys(PLACES, 0)
    for item in scene.items:
        facts[item.place] = 1 + SHAPES.index(item.shape) * len(COLOURS) + list(COLOURS).index(item.colour)
    if scene.word is not None and scene.word_place is not None:
        facts[scene.word_place] = 1 + len(SHAPES) * len(COLOURS) + WORDS.index(scene.word)
    return np.array([*facts.values(), _GROUND + [*GROUNDS, TRANSPARENT].index(scene.ground)])
