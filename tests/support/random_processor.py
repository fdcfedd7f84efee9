"""The folder `processor/` of a small checkpoint: in milliseconds and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from tests.support.random_configurations import PLAIN_TOKENS, SPECIAL_TOKENS, Configuration

Spelling = Literal["transformers4", "transformers5"]

QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if message.content is string %}{{- message.content }}{%- else %}{%- for part in message.content %}"
    "{%- if part.type == 'image' %}{{- '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{%- elif 'text' in part %}{{- part.text }}{%- endif %}{%- endfor %}{%- endif %}{{- '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
CORPUS = (
    "Comprehend and analyze the provided prompt.",
    "system user assistant",
    "a red circle and a blue square on a transparent ground, in the style of an oil painting",
    "a capybara wearing a wizard hat, reading a book by candlelight; it's what we've seen, they'll say",
    "一个红色的圆形在蓝色的背景上，左边有一个绿色的三角形。",
    "写着“你好”的招牌，白色背景",
    "Ein grüner Würfel über dem Tisch, dahinter zwei gelbe Kreise",
    "красный круг слева от синего квадрата",
    "赤い丸と青い四角、透明な背景",
)


def write_processor(folder: Path, configuration: Configuration, spelling: Spelling = "transformers5") -> None:
    """Write `processor/`: a byte-level BPE trained on `CORPUS`, and the image processor's settings."""
    from tokenizers import (
        AddedToken,
        Regex,
        Tokenizer,
        decoders,
        models,
        normalizers,
        pre_tokenizers,
        processors,
        trainers,
    )

    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=256 + configuration.merges,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in PLAIN_TOKENS])
    if tokenizer.get_vocab_size() != configuration.tokenizer_size:
        raise AssertionError(
            f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {configuration.tokenizer_size}"
        )
    tokenizer.save(str(folder / "tokenizer.json"))

    added = {
        str(index): {
            "content": token.content,
            "lstrip": token.lstrip,
            "normalized": token.normalized,
            "rstrip": token.rstrip,
            "single_word": token.single_word,
            "special": token.special,
        }
        for index, token in sorted(tokenizer.get_added_tokens_decoder().items())
    }
    settings = {
        "add_bos_token": False,
        "add_prefix_space": False,
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 262144,
        "pad_token": "<|endoftext|>",
        "processor_class": "Qwen3VLProcessor",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }
    image = {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": [0.5, 0.5, 0.5],
        "merge_size": 2,
        "patch_size": 16,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": 16777216, "shortest_edge": 65536},
        "temporal_patch_size": 2,
    }
    video = {**image, "video_processor_type": "Qwen3VLVideoProcessor"}
    del video["image_processor_type"]
    if spelling == "transformers4":
        tokenizer.model.save(str(folder))
        settings["added_tokens_decoder"] = added
        settings["additional_special_tokens"] = list(SPECIAL_TOKENS[1:])
        image["image_processor_type"] = "Qwen2VLImageProcessorFast"
        write_json(folder / "preprocessor_config.json", {**image, "processor_class": "Qwen3VLProcessor"})
        write_json(folder / "video_preprocessor_config.json", {**video, "processor_class": "Qwen3VLProcessor"})
    else:
        settings["backend"] = "tokenizers"
        settings["extra_special_tokens"] = list(SPECIAL_TOKENS[1:])
        processor = {"image_processor": image, "processor_class": "Qwen3VLProcessor", "video_processor": video}
        write_json(folder / "processor_config.json", processor)
    write_json(folder / "tokenizer_config.json", settings)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write `value` as the libraries do: two spaces, sorted keys, a last newline."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
