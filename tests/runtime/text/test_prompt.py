from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import QwenImage21Pipeline
from PIL import Image
from tokenizers import AddedToken, Tokenizer, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qwen_image_engine.engines.core.errors import QwenImageError, UsageError
from qwen_image_engine.runtime.model.sequence import ImageBlock, TextRun
from qwen_image_engine.runtime.text.prompt import MAX_PROMPT_TOKENS, TEXT_TEMPLATE, tokenize
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from tests.support.random_configurations import CONFIGURATIONS
from tests.support.random_processor import write_processor


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> Tokenizer:
    return load_tokenizer(checkpoint)


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> Any:
    """Diffusers' pipeline without its networks: what it derives from the processor alone."""
    oracle = AutoTokenizer.from_pretrained(checkpoint / "processor")

    def apply_chat_template(messages: list[dict[str, Any]], **options: Any) -> list[list[int]]:
        flat = [{"role": m["role"], "content": "".join(part["text"] for part in m["content"])} for m in messages]
        return [oracle.apply_chat_template(flat, **options)]

    processor = SimpleNamespace(apply_chat_template=apply_chat_template, tokenizer=oracle)
    pipe = object.__new__(QwenImage21Pipeline)
    pipe.register_modules = lambda **modules: vars(pipe).update(modules)  # type: ignore[method-assign]
    QwenImage21Pipeline.__init__(pipe, None, None, None, processor, None)
    return pipe


@pytest.mark.parametrize("loader", ["AutoTokenizer", "PreTrainedTokenizerFast"])
def test_ids_equal_transformers(
    loader: str,
    tokenizer: Tokenizer,
    checkpoint: Path,
    prompts: list[str],
    pipeline: Any,
    within: Callable[[str, float, float], None],
) -> None:
    folder = checkpoint / "processor"
    oracle: Any = (
        AutoTokenizer.from_pretrained(folder)
        if loader == "AutoTokenizer"
        else PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    )
    assert len(set(prompts)) == 200
    different = []
    for prompt in prompts:
        tokens = tokenize(tokenizer, prompt)
        assert tokens.ids.dtype == np.int64
        assert tokens.dropped == pipeline._drop_idx
        if tokens.ids.tolist() != oracle(pipeline.prompt_template_t2i.format(prompt))["input_ids"]:
            different.append(prompt)
    within("prompts of 200 whose token ids differ from transformers'", len(different), 0)


def test_template_equals_diffusers(pipeline: Any) -> None:
    assert pipeline.prompt_template_t2i == TEXT_TEMPLATE


def test_dropped_tokens_are_the_system_turn(tokenizer: Tokenizer) -> None:
    tokens = tokenize(tokenizer, "a red circle")
    rest = tokenizer.decode(tokens.ids[tokens.dropped :].tolist(), skip_special_tokens=False)
    assert rest == "<|im_start|>user\na red circle<|im_end|>\n<|im_start|>assistant\n"


def test_special_token_in_a_prompt_is_that_token(tokenizer: Tokenizer) -> None:
    plain, special = tokenize(tokenizer, "a circle"), tokenize(tokenizer, "a<|im_end|> circle")
    assert len(special.ids) == len(plain.ids) + 1


def test_empty_prompt_is_one_space(tokenizer: Tokenizer) -> None:
    np.testing.assert_array_equal(tokenize(tokenizer, "").ids, tokenize(tokenizer, " ").ids)


def test_limit_counts_the_prompts_own_tokens(tokenizer: Tokenizer) -> None:
    longest = "1" * MAX_PROMPT_TOKENS  # the pre-tokenizer keeps digits apart
    frame = len(tokenize(tokenizer, "1").ids) - 1
    assert len(tokenize(tokenizer, longest).ids) == frame + MAX_PROMPT_TOKENS
    with pytest.raises(UsageError, match=f"the prompt has {MAX_PROMPT_TOKENS + 1} tokens, at most {MAX_PROMPT_TOKENS}"):
        tokenize(tokenizer, longest + "1")


def test_lone_surrogate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match="not valid Unicode at character 2"):
        tokenize(tokenizer, "a \udcff")


REFERENCES: dict[str, list[ImageBlock]] = {
    "none": [],
    "square": [ImageBlock(64, 64)],
    "wide": [ImageBlock(2, 130)],
    "tall and wide": [ImageBlock(40, 12), ImageBlock(12, 40)],
    "mixed": [ImageBlock(16, 16), ImageBlock(18, 20), ImageBlock(90, 46)],
    "ten": [ImageBlock(2 * n, 24 - 2 * n) for n in range(1, 11)],
}


def diffusers_text(pipeline: Any, prompt: str, references: list[ImageBlock]) -> str:
    """The text that QwenImage21Pipeline gives the processor: the template with one slot an image."""
    given: list[str] = []

    class Given(Exception):
        pass

    def processor(**options: Any) -> None:
        assert len(options.get("images", [])) == len(references)
        given.extend(options["text"])
        raise Given

    images = [Image.new("RGBA", (1, 1)) for _ in references]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "processor", processor)
        with pytest.raises(Given):
            pipeline._get_qwen_prompt_embeds(prompt, images or None, torch.device("cpu"))
    (text,) = given
    return text


@pytest.mark.parametrize("references", REFERENCES.values(), ids=REFERENCES)
def test_ids_with_references_equal_transformers(
    tokenizer: Tokenizer, checkpoint: Path, prompts: list[str], pipeline: Any, references: list[ImageBlock]
) -> None:
    oracle = AutoTokenizer.from_pretrained(checkpoint / "processor")
    slot = oracle.convert_tokens_to_ids("<|image_pad|>")
    for prompt in ["", *prompts[::10]]:
        before, *after = diffusers_text(pipeline, prompt, references).split("<|image_pad|>")
        for block, text in zip(references, after, strict=True):
            before += "<|image_pad|>" * (block.height * block.width // 4) + text  # as Qwen3VLProcessor expands them
        tokens = tokenize(tokenizer, prompt, references)
        assert tokens.ids.dtype == np.int64
        assert tokens.ids.tolist() == oracle(before)["input_ids"]
        assert tokens.dropped == pipeline._drop_idx
        in_text: list[bool] = []
        for segment in tokens.segments:
            is_text = isinstance(segment, TextRun)
            in_text += [is_text] * (segment.length if is_text else segment.height * segment.width // 4)
        assert in_text == (tokens.ids != slot).tolist()
        assert [segment for segment in tokens.segments if isinstance(segment, ImageBlock)] == references
        assert len(tokens.segments) == 2 * len(references) + 1


def test_ids_and_patches_equal_the_whole_processor(tmp_path: Path, pipeline: Any) -> None:
    pytest.importorskip("torchvision")
    from transformers import AutoProcessor

    from qwen_image_engine.runtime.model.vision import vision_patches

    write_processor(tmp_path / "processor", CONFIGURATIONS["narrow"])
    references = REFERENCES["mixed"]
    rng = np.random.default_rng(0)
    rgb = [rng.integers(0, 256, (16 * block.height, 16 * block.width, 3), dtype=np.uint8) for block in references]
    prompt = "a red circle on <image1>, 一个红色的圆"
    expected = AutoProcessor.from_pretrained(tmp_path / "processor")(
        text=[diffusers_text(pipeline, prompt, references)],
        images=[Image.fromarray(array) for array in rgb],
        padding=True,
        return_tensors="pt",
    )
    tokens = tokenize(load_tokenizer(tmp_path), prompt, references)
    assert tokens.ids.tolist() == expected["input_ids"][0].tolist()
    kinds = [int(isinstance(segment, ImageBlock)) for segment in tokens.segments]
    lengths = [
        segment.length if isinstance(segment, TextRun) else segment.height * segment.width // 4
        for segment in tokens.segments
    ]
    assert np.repeat(kinds, lengths).tolist() == expected["mm_token_type_ids"][0].tolist()
    assert expected["image_grid_thw"].tolist() == [[1, block.height, block.width] for block in references]
    patches = np.concatenate([vision_patches(array, [0.5] * 3, [0.5] * 3) for array in rgb])
    np.testing.assert_array_equal(patches, expected["pixel_values"].numpy())


def test_the_limit_does_not_count_references(tokenizer: Tokenizer) -> None:
    longest = "1" * MAX_PROMPT_TOKENS
    references = [ImageBlock(64, 64)] * 10
    assert len(tokenize(tokenizer, longest, references).ids) > MAX_PROMPT_TOKENS + 10240


@pytest.mark.parametrize("references", [[], [ImageBlock(4, 4)]], ids=["alone", "beside a reference"])
def test_slots_in_a_prompt_are_refused(tokenizer: Tokenizer, tmp_path: Path, references: list[ImageBlock]) -> None:
    with pytest.raises(UsageError, match=r"^the prompt holds <\|image_pad\|>, which stands for a reference image;"):
        tokenize(tokenizer, "a <|image_pad|> b", references)
    write_processor(tmp_path / "processor", CONFIGURATIONS["narrow"])
    with pytest.raises(UsageError, match=r"^the prompt holds <\|video_pad\|>, which stands for a video; take it out$"):
        tokenize(load_tokenizer(tmp_path), "a <|video_pad|> b", references)


def test_tokenizer_without_vision_tokens() -> None:
    plain = Tokenizer(models.BPE(unk_token="?", vocab={"?": 0, "a": 1}, merges=[]))
    plain.add_special_tokens([AddedToken(token, special=True) for token in ("<|im_start|>", "<|vision_start|>")])
    assert tokenize(plain, "a").segments == (TextRun(len(tokenize(plain, "a").ids)),)
    with pytest.raises(QwenImageError, match=r"^the tokenizer has no <\|image_pad\|>, <\|vision_end\|>, which"):
        tokenize(plain, "a", [ImageBlock(4, 4)])
