"""The token ids for the text encoder: a template with reference images and the user's prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.model.sequence import ImageBlock, Segment, TextRun
from qwen_image_engine.runtime.text.tokenizer import token_ids

SYSTEM_PROMPT = "Comprehend and analyze the provided prompt."
SYSTEM_TURN = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
TEXT_TEMPLATE = SYSTEM_TURN + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

IMAGE_SLOT = "<|image_pad|>"
IMAGE_TEMPLATE = "<image{}><|vision_start|>" + IMAGE_SLOT + "<|vision_end|>"
VISION_TOKENS = ("<|vision_start|>", IMAGE_SLOT, "<|vision_end|>")

NOT_IN_PROMPTS = {IMAGE_SLOT: "a reference image", "<|video_pad|>": "a video"}

MAX_PROMPT_TOKENS = 1100
"""Longest prompt [tokens, without the template]."""

USUAL_PROMPT_TOKENS = 200
"""Tokens of a prompt as people write it, with the template."""


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """A tokenized prompt, the input of the text encoder.

    Attributes:
        ids: token ids (T,) int64 of the whole templated sequence, system turn included; each image is its slots.
        dropped: number of leading tokens (the system turn) whose hidden states the transformer does not see.
        segments: text and images in order, system turn included; an image of h x w latents has h/2 x w/2 slots.
    """

    ids: NDArray[np.int64]
    dropped: int
    segments: tuple[Segment, ...]


def tokenize(tokenizer: Tokenizer, prompt: str, references: Sequence[ImageBlock] = ()) -> PromptTokens:
    """Put reference images and the prompt into the template and tokenize it, as `QwenImage21Pipeline` does.

    An empty prompt becomes one space. The name of a special token inside the prompt (`<|im_end|>`) becomes that token,
    as in transformers.

    Args:
        tokenizer: tokenizer of the checkpoint.
        prompt: text of any script.
        references: latent blocks of the reference images, in order, with even sides.

    Raises:
        UsageError: the prompt is not a str, is longer than `MAX_PROMPT_TOKENS`, is not valid Unicode, or contains an
            image slot or a video slot.
        QwenImageError: there are reference images, and the tokenizer has no tokens for them; or the tokenizer fails on
            the prompt.
    """
    if not isinstance(prompt, str):
        raise UsageError(f"the prompt is {type(prompt).__name__}, expected str")
    prompt = prompt or " "
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid Unicode at character {error.start}") from error
    own = token_ids(tokenizer, prompt)
    if len(own) > MAX_PROMPT_TOKENS:
        raise UsageError(f"the prompt has {len(own)} tokens, at most {MAX_PROMPT_TOKENS} fit; shorten it")
    for token, meaning in NOT_IN_PROMPTS.items():
        if tokenizer.token_to_id(token) in own:
            raise UsageError(f"the prompt holds {token}, which stands for {meaning}; take it out")
    missing = [token for token in VISION_TOKENS if tokenizer.token_to_id(token) is None]
    if references and missing:
        raise QwenImageError(
            f"the tokenizer has no {', '.join(missing)}, which stand for reference images; use a checkpoint's own "
            "tokenizer, or leave the reference images out"
        )
    images = " ".join(IMAGE_TEMPLATE.format(number) for number in range(1, len(references) + 1))
    ids = token_ids(tokenizer, TEXT_TEMPLATE.format(images + prompt))
    slot = tokenizer.token_to_id(IMAGE_SLOT)
    whole: list[int] = []
    segments: list[Segment] = []
    start = 0
    for at, block in zip([at for at, token in enumerate(ids) if token == slot], references, strict=True):
        whole += ids[start:at] + [ids[at]] * (block.height // 2 * (block.width // 2))
        segments += [TextRun(at - start), block]
        start = at + 1
    return PromptTokens(
        ids=np.array(whole + ids[start:], dtype=np.int64),
        dropped=len(token_ids(tokenizer, SYSTEM_TURN)),
        segments=(*segments, TextRun(len(ids) - start)),
    )
