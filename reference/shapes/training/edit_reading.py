"""The stage before the course of edits: the reader learns what an edit changes.

It answers the questions of `encoder` about the result: what is at each place and what the ground is, or that it is the
same as in the first reference image. The vision tower is untrained and learns to see from these answers. The
transformer already draws stated facts; in the course of edits it only has to copy where none is stated.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from qwen_image_engine.reference.shapes.scenes.edits import KINDS, Edit, split_edit
from qwen_image_engine.reference.shapes.scenes.instructions import write_instruction
from qwen_image_engine.reference.shapes.scenes.prompts import write_prompt
from qwen_image_engine.reference.shapes.scenes.scene import split_scene
from qwen_image_engine.reference.shapes.training.encoder import SAME, Questions, facts
from qwen_image_engine.reference.shapes.training.muon import Muon
from qwen_image_engine.reference.shapes.training.precision import autocast
from qwen_image_engine.reference.shapes.training.rate import share_of_rate
from qwen_image_engine.reference.shapes.training.text_batch import Reader, TextBatch, tokenize_batch
from qwen_image_engine.runtime.images.pixels import encoder_pixels
from qwen_image_engine.runtime.model.sequence import ImageBlock, TextRun

STEPS = 400
BATCH = 40
MATRIX_RATE, OTHER_RATE = 2e-3, 2e-3
SIZES = ((128, 128), (192, 192), (256, 256), (192, 128), (128, 192))
SIZE_SHARES = (0.68, 0.08, 0.04, 0.1, 0.1)
SCENE_SHARE, COMBINE_SHARE = 0.2, 0.2
CHANGED_WEIGHT = 4.0  # of an answer that differs from the reference: one or two of the ten do


def train_edit_reader(
    reader: Reader, tokenizer: Tokenizer, seed: int, device: str, report: Callable[[str], None]
) -> None:
    """Train embedding table, vision tower and encoder in place on instructions of the training part, and on prompts.

    Args:
        reader: Reader to train.
        tokenizer: Tokenizer from `train_tokenizer`.
        seed: Seed of edits, prompts and questions.
        device: Device to train on; the reader is left on the CPU.
        report: Function called with a line of progress every 50 steps.

    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    reader.to(device).train()
    questions = Questions(reader.encoder.config.hidden_size).to(device)
    matrices, others = list[nn.Parameter](), [*questions.parameters()]
    for name, parameter in reader.named_parameters():
        inside = parameter.ndim == 2 and ("encoder.layers" in name or "vision.blocks" in name)
        (matrices if inside else others).append(parameter)
    optimizers: list[tuple[torch.optim.Optimizer, float]] = [
        (Muon(matrices, MATRIX_RATE, weight_decay=0.05), MATRIX_RATE),
        (torch.optim.AdamW(others, OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.0), OTHER_RATE),
    ]
    start, right = time.monotonic(), list[float]()
    for step in range(STEPS):
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * share_of_rate(step, STEPS)
        text, rgb, wanted = _batch(tokenizer, rng, device)
        with autocast(device):
            states = reader(text, rgb)[:, text.text().to(device)].float()
        last = text.segments[-1]
        assert isinstance(last, TextRun)
        ends = torch.tensor(text.lengths, device=device) + states.shape[1] - last.length
        answers = questions(states, torch.arange(states.shape[1], device=device) < ends[:, None])
        losses = F.cross_entropy(answers.flatten(0, 1), wanted.flatten(), reduction="none")
        weights = torch.where(wanted.flatten() == SAME, 1.0, CHANGED_WEIGHT)
        loss = (losses * weights).sum() / weights.sum()
        for optimizer, _ in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        if rgb is not None:
            right.append((answers.argmax(-1) == wanted).all(-1).float().mean().item())
        if step % 50 == 49:
            share, seconds = np.mean(right[-40:]), time.monotonic() - start
            report(f"edit reader {step + 1}/{STEPS}  whole edits right {share:.2f}  {seconds:.0f} s")
    reader.cpu().eval()


def _batch(
    tokenizer: Tokenizer, rng: np.random.Generator, device: str
) -> tuple[TextBatch, NDArray[np.uint8] | None, Tensor]:
    """Return a batch of tokens, their reference images if any (B, R, H, W, 3), and the answers (B, 10).

    A batch has prompts without reference images, instructions with one, or instructions to combine two.
    """
    chance = rng.random()
    if chance < SCENE_SHARE:
        scenes = [split_scene(rng, held_out=False) for _ in range(BATCH)]
        wanted = np.stack([facts(scene) for scene in scenes])
        text = tokenize_batch(tokenizer, [write_prompt(scene, rng) for scene in scenes], device)
        return text, None, torch.from_numpy(wanted).to(device)
    kinds = KINDS[-1:] if chance < SCENE_SHARE + COMBINE_SHARE else KINDS[:-1]
    width, height = SIZES[int(rng.choice(len(SIZES), p=SIZE_SHARES))]
    edits = [split_edit(rng, kinds[i % len(kinds)], held_out=False) for i in range(BATCH)]
    rgb = np.stack([np.stack([encoder_pixels(r.draw(width, height)) for r in edit.references]) for edit in edits])
    blocks = [ImageBlock(height // 16, width // 16)] * rgb.shape[1]
    text = tokenize_batch(tokenizer, [write_instruction(edit, rng) for edit in edits], device, blocks)
    return text, rgb, torch.from_numpy(np.stack([_changes(edit) for edit in edits])).to(device)


def _changes(edit: Edit) -> NDArray[np.int64]:
    """Return the answers for the result, (10,), `SAME` where the first reference image has the same answer."""
    before, after = facts(edit.references[0].scene), facts(edit.result.scene)
    return np.where(before == after, SAME, after)
