"""A byte-level BPE with the pre-tokenizer and special tokens of Qwen2's, trained on the recipe's own prompts."""

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from qwen_image_engine.reference.shapes.scenes.prompts import CHINESE_WORDS, write_prompt
from qwen_image_engine.reference.shapes.scenes.scene import random_scene
from qwen_image_engine.runtime.text.prompt import TEXT_TEMPLATE

VOCABULARY = 520
PROMPTS = 3000
SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Qwen2's pre-tokenizer (tokenizer.json of the released processor).
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def train_tokenizer(seed: int) -> Tokenizer:
    """Train a tokenizer on random prompts. It can encode any text: every byte is in the vocabulary."""
    rng = np.random.default_rng(seed)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    texts = [TEXT_TEMPLATE.format(write_prompt(random_scene(rng), rng, "en")) for _ in range(PROMPTS)]
    # Chinese has no spaces: learnt from whole prompts, tokens would straddle its words.
    texts += list(CHINESE_WORDS) * PROMPTS
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer
