from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from diffusers.pipelines.qwenimage21.pipeline_qwenimage21 import QwenImage21Pipeline
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from qwen_image_engine.engines.errors import UsageError
from qwen_image_engine.runtime.prompt import MAX_PROMPT_TOKENS, TEXT_TEMPLATE, tokenize
from qwen_image_engine.runtime.tokenizer import load_tokenizer


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
