"""From a prompt to what conditions the picture: keys and values of the prefix, the same for every step and seed."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from qwen_image_engine.engines.errors import QwenImageError
from qwen_image_engine.runtime.embedding import EmbeddingTable
from qwen_image_engine.runtime.layout import text_positions
from qwen_image_engine.runtime.memory import Components
from qwen_image_engine.runtime.model import ModelFacts
from qwen_image_engine.runtime.prompt import PromptTokens, tokenize
from qwen_image_engine.runtime.rope import rotary_tables, text_rotary_tables

KEPT_PROMPTS = 2
"""Prompt and negative prompt of the last picture: in fp32 the released model takes 1 MiB a token for each."""


@dataclass(frozen=True, eq=False)
class Conditioning:
    """An encoded prompt; independent of size, seed and steps, so one serves any number of pictures.

    Attributes:
        prompt: as given.
        text_states: (1, T, context) float32, the encoder's states after the system turn.
        cache: `key_0`, `value_0`, … of every layer of the transformer, each (1, T, heads, head_dim) float32.
    """

    prompt: str
    text_states: NDArray[np.float32]
    cache: Mapping[str, NDArray[np.float32]]

    @property
    def length(self) -> int:
        """Tokens of the prefix: the target's frame position."""
        return int(self.text_states.shape[1])


class PromptEncoder:
    """Text encoder and prefix pass, with the last prompts' results kept."""

    def __init__(
        self, components: Components, tokenizer: Tokenizer, embeddings: EmbeddingTable, facts: ModelFacts
    ) -> None:
        self._components = components
        self._tokenizer = tokenizer
        self._embeddings = embeddings
        self._facts = facts
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def encode(self, prompts: Sequence[str]) -> list[Conditioning]:
        """Encode prompts, each component running for all of them before the next, so that it is loaded once.

        Raises:
            UsageError: a prompt is too long, no valid Unicode, or holds an image's slot.
            QwenImageError: an engine failed, or gave values that are not finite.
        """
        tokens = {prompt: tokenize(self._tokenizer, prompt) for prompt in prompts if prompt not in self._kept}
        for prompt in [old for old in self._kept if old not in prompts]:
            if len(self._kept) + len(tokens) > KEPT_PROMPTS:
                del self._kept[prompt]
        found = {prompt: self._kept[prompt] for prompt in prompts if prompt in self._kept}
        states = {prompt: self._text_states(item) for prompt, item in tokens.items()}
        found |= {prompt: self._prefix(prompt, item) for prompt, item in states.items()}
        for prompt in prompts:
            self._kept[prompt] = found[prompt]
            self._kept.move_to_end(prompt)
        while len(self._kept) > KEPT_PROMPTS:
            self._kept.popitem(last=False)
        return [found[prompt] for prompt in prompts]

    def _text_states(self, tokens: PromptTokens) -> NDArray[np.float32]:
        cos, sin = text_rotary_tables(len(tokens.ids), self._facts.encoder_head_dim, self._facts.encoder_rope_theta)
        inputs = {"embeddings": self._embeddings.rows(tokens.ids)[None], "cos": cos, "sin": sin}
        states = self._components.run("text_encoder", inputs)["hidden_states"]
        check_finite("text_encoder", "hidden_states", states)
        return np.ascontiguousarray(states[:, tokens.dropped :])

    def _prefix(self, prompt: str, text_states: NDArray[np.float32]) -> Conditioning:
        positions = text_positions(text_states.shape[1])
        cos, sin = rotary_tables(positions, self._facts.axes_dims_rope)
        cache = self._components.run("prefix", {"text_states": text_states, "cos": cos, "sin": sin})
        for name, values in cache.items():
            check_finite("prefix", name, values)
        return Conditioning(prompt, text_states, cache)


def check_finite(component: str, name: str, values: NDArray[np.float32]) -> None:
    """Stop where values went wrong, not where they show.

    Raises:
        QwenImageError: a value is infinite or not a number; the text names component and tensor.
    """
    wrong = values.size - int(np.count_nonzero(np.isfinite(values)))
    if wrong:
        raise QwenImageError(
            f"{component}: {wrong} of {values.size} values of {name} are not finite; check the bundle's weights with "
            "qwen-image verify, and where they are right and fp16, export in bf16 or fp32"
        )
