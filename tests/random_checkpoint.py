"""Small random-weight checkpoints in the released layout, saved by diffusers and transformers, and these oracles.

    folder = write_checkpoint(tmp_path / "model", "narrow")  # fp32, one file a component
    folder = write_checkpoint(
        tmp_path / "model", "deep", turbo=True, dtype="bfloat16", max_shard_size="500KB", spelling="transformers4"
    )

Configurations ("narrow", "odd", "deep": `CONFIGURATIONS`) differ in every dimension that a released checkpoint states.
Writing one takes 0.3 s after diffusers and transformers are imported (4 to 8 s, once a process). Weights depend on the
configuration, the component and `seed` alone: `turbo`, `dtype`, `spelling` and sharding leave them as they are, up to
rounding. Every norm weight, bias and `time_conv` is random too, so a wrong or forgotten one changes the output.

Oracles of one folder, in fp32 and eval mode unless `dtype` says otherwise:

    load_transformer(folder)   QwenImage21Transformer2DModel
    load_vae(folder)           AutoencoderKLQwenImage21
    load_text_encoder(folder)  Qwen3VLForConditionalGeneration
    load_tokenizer(folder)     transformers' tokenizer of processor/
    load_pipeline(folder)      QwenImage21Pipeline with a text-only processor (`TextProcessor`)

Where torchvision is installed, `QwenImage21Pipeline.from_pretrained(folder, torch_dtype=torch.float32)` works as well,
reference images included.

`conftest.py` has the session fixture `random_checkpoint(name="narrow", **options) -> Path`, which writes each variant
once. Treat what it returns as read-only: copy it, or call `write_checkpoint`, to damage it. The tokenizer alone, in
milliseconds and without torch: `write_processor(folder, CONFIGURATIONS["narrow"])`.
"""

from __future__ import annotations

import json
import sys
import types
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# torchvision has no CPU wheel; only this module of it needs the compiled operators at import, and transformers' image
# processors need the rest of it.
sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))

Spelling = Literal["transformers4", "transformers5"]

# In the order of the released tokenizer, so that relative ids agree (151643 is the first).
SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
# Added tokens of the released tokenizer that are not special: they match in text and survive skip_special_tokens.
PLAIN_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
)
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
# Turbo's own grid, from model_index.json of the released Turbo checkpoint.
TURBO_SIGMAS = (1.0, 0.978453, 0.95418, 0.926626, 0.89508, 0.845148, 0.704534, 0.414568)


@dataclass(frozen=True)
class Configuration:
    """Arguments of the oracles' own classes; `text`, `vision` are those of Qwen3-VL's two sub-configs."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    vision: Mapping[str, Any]
    merges: int  # byte-pair merges of the tokenizer

    @property
    def tokenizer_size(self) -> int:
        """Tokens of the tokenizer; the embedding table has `text["vocab_size"]` rows, more than these."""
        return 256 + self.merges + len(SPECIAL_TOKENS) + len(PLAIN_TOKENS)

    def token_id(self, token: str) -> int:
        """Id of a special token."""
        return 256 + self.merges + SPECIAL_TOKENS.index(token)


CONFIGURATIONS: Mapping[str, Configuration] = {
    "narrow": Configuration(
        transformer={
            "in_channels": 16,
            "out_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 3,
            "context_in_dim": 64,
            "mlp_ratio": 3,
            "axes_dims_rope": (8, 12, 12),
            "eps": 1e-6,
        },
        vae={
            "base_dim": 8,
            "decoder_base_dim": 12,
            "z_dim": 16,
            "dim_mult": [1, 2, 4, 4, 4],
            "num_res_blocks": 1,
            "temperal_downsample": [False, True, True, True],
        },
        text={
            "vocab_size": 384,
            "hidden_size": 64,
            "intermediate_size": 160,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5e6,
            "mrope_section": [4, 2, 2],
        },
        vision={
            "depth": 4,
            "hidden_size": 32,
            "num_heads": 2,
            "intermediate_size": 48,
            "deepstack": [0, 1, 2],
            "side": 8,
        },
        merges=60,
    ),
    "odd": Configuration(
        transformer={
            "in_channels": 12,
            "out_channels": 12,
            "num_layers": 3,
            "attention_head_dim": 24,
            "num_attention_heads": 5,
            "context_in_dim": 48,
            "mlp_ratio": 2,
            "axes_dims_rope": (4, 12, 8),
            "eps": 1e-5,
        },
        vae={
            "base_dim": 12,
            "decoder_base_dim": 8,
            "z_dim": 12,
            "dim_mult": [1, 1, 2, 4, 4],
            "num_res_blocks": 2,
            "temperal_downsample": [True, False, True, False],
        },
        text={
            "vocab_size": 427,
            "hidden_size": 48,
            "intermediate_size": 112,
            "num_hidden_layers": 4,
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 20,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1e6,
            "mrope_section": [4, 3, 3],
        },
        vision={
            "depth": 3,
            "hidden_size": 48,
            "num_heads": 3,
            "intermediate_size": 80,
            "deepstack": [0, 2],
            "side": 6,
        },
        merges=110,
    ),
    "deep": Configuration(
        transformer={
            "in_channels": 24,
            "out_channels": 24,
            "num_layers": 5,
            "attention_head_dim": 40,
            "num_attention_heads": 2,
            "context_in_dim": 96,
            "mlp_ratio": 4,
            "axes_dims_rope": (8, 16, 16),
            "eps": 1e-4,
        },
        vae={
            "base_dim": 6,
            "decoder_base_dim": 10,
            "z_dim": 24,
            "dim_mult": [1, 2, 4, 8, 8],
            "num_res_blocks": 3,
            "temperal_downsample": [False, False, True, True],
        },
        text={
            "vocab_size": 512,
            "hidden_size": 96,
            "intermediate_size": 208,
            "num_hidden_layers": 5,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "rms_norm_eps": 1e-4,
            "rope_theta": 1e4,
            "mrope_section": [6, 5, 5],
        },
        vision={
            "depth": 5,
            "hidden_size": 64,
            "num_heads": 2,
            "intermediate_size": 96,
            "deepstack": [1, 3, 4],
            "side": 10,
        },
        merges=200,
    ),
}


def write_checkpoint(
    folder: Path,
    name: str = "narrow",
    *,
    seed: int = 0,
    turbo: bool = False,
    dtype: str = "float32",
    vae_dtype: str | None = None,
    max_shard_size: str = "5GB",
    spelling: Spelling = "transformers5",
    licence: str | None = "random-weights",
) -> Path:
    """Write one checkpoint into `folder` (made if absent) and return it.

    `dtype` is float32, bfloat16 or float16, for every component unless `vae_dtype` says otherwise. `max_shard_size` as
    in `save_pretrained`; "500KB" splits the transformer and the text encoder of every configuration. `spelling` is that
    of text_encoder/config.json and of the processor's files. `licence` goes into README.md; None: no README.
    """
    import torch
    from diffusers import AutoencoderKLQwenImage21, QwenImage21Transformer2DModel
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    configuration = CONFIGURATIONS[name]
    folder.mkdir(parents=True, exist_ok=True)
    main_dtype = getattr(torch, dtype)

    transformer = QwenImage21Transformer2DModel(patch_size=1, causal_condition=True, **configuration.transformer)
    randomise(transformer, f"{name}/transformer/{seed}")
    torch.nn.Module.to(transformer, main_dtype).save_pretrained(folder / "transformer", max_shard_size=max_shard_size)

    z_dim = configuration.vae["z_dim"]
    generator = torch.Generator("cpu").manual_seed(seed + 1)
    vae = AutoencoderKLQwenImage21(
        **configuration.vae,
        latents_mean=torch.randn(z_dim, generator=generator).mul(0.3).tolist(),
        latents_std=torch.rand(z_dim, generator=generator).add(0.5).tolist(),
    )
    randomise(vae, f"{name}/vae/{seed}")
    torch.nn.Module.to(vae, getattr(torch, vae_dtype or dtype)).save_pretrained(
        folder / "vae", max_shard_size=max_shard_size
    )

    encoder = Qwen3VLForConditionalGeneration(Qwen3VLConfig(**qwen3_vl_arguments(configuration)))
    randomise(encoder, f"{name}/text_encoder/{seed}")
    encoder.to(dtype=main_dtype).save_pretrained(folder / "text_encoder", max_shard_size=max_shard_size)
    if spelling == "transformers4":
        respell_rope(folder / "text_encoder" / "config.json")

    write_processor(folder / "processor", configuration, spelling)
    write_scheduler(folder / "scheduler", turbo)
    write_model_index(folder, turbo)
    if licence is not None:
        (folder / "README.md").write_text(
            f"---\nlicense: other\nlicense_name: {licence}\n---\n\nRandom.\n", encoding="utf-8"
        )
    return folder


def qwen3_vl_arguments(configuration: Configuration) -> dict[str, Any]:
    """Arguments of `Qwen3VLConfig`, with the tokenizer's ids of the vision tokens."""
    text = dict(configuration.text)
    rope = {
        "rope_type": "default",
        "rope_theta": text.pop("rope_theta"),
        "mrope_section": text.pop("mrope_section"),
        "mrope_interleaved": True,
    }
    vision = dict(configuration.vision)
    side = vision.pop("side")
    vision["deepstack_visual_indexes"] = vision.pop("deepstack")
    return {
        "text_config": {**text, "rope_parameters": rope, "hidden_act": "silu", "attention_bias": False},
        "vision_config": {**vision, "num_position_embeddings": side * side, "out_hidden_size": text["hidden_size"]},
        "image_token_id": configuration.token_id("<|image_pad|>"),
        "video_token_id": configuration.token_id("<|video_pad|>"),
        "vision_start_token_id": configuration.token_id("<|vision_start|>"),
        "vision_end_token_id": configuration.token_id("<|vision_end|>"),
        "tie_word_embeddings": False,
    }


def randomise(module: Any, key: str) -> None:
    """Fill every parameter from a generator seeded by `key`, so that nothing is at a value that hides a mistake.

    Matrices and kernels keep their input's magnitude; norm weights spread around 1 (around 0 where stored minus one).
    """
    import torch

    generator = torch.Generator("cpu").manual_seed(zlib.crc32(key.encode()))
    with torch.no_grad():
        for name, parameter in sorted(module.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if "text_norm" in name:
                value = 0.3 * noise
            elif name.endswith("gamma") or (parameter.dim() == 1 and name.endswith("weight")):
                value = 1.0 + 0.3 * noise
            elif parameter.dim() == 1:
                value = 0.1 * noise
            elif "embed" in name and "patch_embed" not in name and "timestep_embedder" not in name:
                value = 0.5 * noise
            else:
                value = noise / parameter[0].numel() ** 0.5
            parameter.copy_(value)
    module.eval()


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


def write_scheduler(folder: Path, turbo: bool) -> None:
    """Write scheduler/scheduler_config.json with the released values, base or Turbo."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(
        num_train_timesteps=1000,
        shift=1.0,
        base_image_seq_len=256,
        base_shift=0.5,
        max_image_seq_len=8192,
        max_shift=0.9,
        use_dynamic_shifting=not turbo,
        shift_terminal=None if turbo else 0.02,
        time_shift_type="exponential",
    ).save_pretrained(folder)


def write_model_index(folder: Path, turbo: bool) -> None:
    """Write model_index.json as `QwenImage21Pipeline.save_pretrained` does."""
    index = {
        "_class_name": "QwenImage21Pipeline",
        "_diffusers_version": "0.42.1",
        "processor": ["transformers", "Qwen3VLProcessor"],
        "sample_sigmas": list(TURBO_SIGMAS) if turbo else None,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3VLForConditionalGeneration"],
        "transformer": ["diffusers", "QwenImage21Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLQwenImage21"],
    }
    write_json(folder / "model_index.json", index)


def respell_rope(path: Path) -> None:
    """Rewrite a transformers 5 Qwen3-VL config as transformers 4 spells it."""
    config = json.loads(path.read_text(encoding="utf-8"))
    for part in (config["text_config"], config["vision_config"]):
        rope = part.pop("rope_parameters", None)
        part["torch_dtype"] = part.pop("dtype", None)
        if part is config["text_config"]:
            part["rope_theta"] = rope.pop("rope_theta")
            part["rope_scaling"] = rope
    config["torch_dtype"] = config.pop("dtype", None)
    config["transformers_version"] = "4.57.0"
    write_json(path, config)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as the libraries do: two spaces, sorted keys, a last newline."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_transformer(folder: Path, dtype: str = "float32") -> Any:
    """diffusers' transformer."""
    import torch
    from diffusers import QwenImage21Transformer2DModel

    return QwenImage21Transformer2DModel.from_pretrained(
        folder / "transformer", torch_dtype=getattr(torch, dtype)
    ).eval()


def load_vae(folder: Path, dtype: str = "float32") -> Any:
    """diffusers' VAE."""
    import torch
    from diffusers import AutoencoderKLQwenImage21

    return AutoencoderKLQwenImage21.from_pretrained(folder / "vae", torch_dtype=getattr(torch, dtype)).eval()


def load_text_encoder(folder: Path, dtype: str = "float32") -> Any:
    """transformers' Qwen3-VL, vision tower included."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    return Qwen3VLForConditionalGeneration.from_pretrained(folder / "text_encoder", dtype=getattr(torch, dtype)).eval()


def load_tokenizer(folder: Path) -> Any:
    """transformers' own tokenizer class on processor/."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder / "processor")


class TextProcessor:
    """The part of `Qwen3VLProcessor` that text-to-image uses, which needs no torchvision."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, messages: Any, tokenize: bool = True, return_dict: bool = False) -> list[list[int]]:
        """Ids of one conversation, batched as the processor batches them."""
        return [list(self.tokenizer.apply_chat_template(messages, tokenize=tokenize, return_dict=return_dict))]

    def __call__(self, text: list[str], **options: Any) -> Any:
        """`input_ids` and `attention_mask` of a batch of texts."""
        return self.tokenizer(text, **options)


def load_pipeline(folder: Path, dtype: str = "float32") -> Any:
    """diffusers' whole pipeline, text-to-image only, with its progress bar off."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImage21Pipeline

    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    pipeline = QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
        vae=load_vae(folder, dtype),
        text_encoder=load_text_encoder(folder, dtype),
        processor=TextProcessor(load_tokenizer(folder)),
        transformer=load_transformer(folder, dtype),
        sample_sigmas=index["sample_sigmas"],
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
