"""The text the encoder reads: the template around the user's prompt, as token ids."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qwen_image_engine.engines.errors import UsageError

SYSTEM_PROMPT = "Comprehend and analyze the provided prompt."
SYSTEM_TURN = f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n"
TEXT_TEMPLATE = SYSTEM_TURN + "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

MAX_PROMPT_TOKENS = 1100
"""Longest prompt, in tokens of its own, without the template's."""


@dataclass(frozen=True, eq=False)
class PromptTokens:
    """A prompt as the encoder takes it.

    Attributes:
        ids: (T,) int64, the whole templated sequence, system turn included.
        dropped: leading tokens (the system turn) whose hidden states the transformer does not see.
    """

    ids: NDArray[np.int64]
    dropped: int


def tokenize(tokenizer: Tokenizer, prompt: str) -> PromptTokens:
    """Put the prompt into the template and tokenize it, as `QwenImage21Pipeline` does without images.

    An empty prompt becomes one space. The name of a special token inside the prompt (`<|im_end|>`) becomes that token,
    as in transformers.

    Raises:
        UsageError: the prompt is longer than `MAX_PROMPT_TOKENS`, or no valid Unicode.
    """
    if not isinstance(prompt, str):
        raise UsageError(f"the prompt is {type(prompt).__name__}, expected str")
    prompt = prompt or " "
    try:
        prompt.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"the prompt is not valid Unicode at character {error.start}") from error
    own = len(tokenizer.encode(prompt).ids)
    if own > MAX_PROMPT_TOKENS:
        raise UsageError(f"the prompt has {own} tokens, at most {MAX_PROMPT_TOKENS} fit; shorten it")
    ids = tokenizer.encode(TEXT_TEMPLATE.format(prompt)).ids
    return PromptTokens(np.array(ids, dtype=np.int64), dropped=len(tokenizer.encode(SYSTEM_TURN).ids))
