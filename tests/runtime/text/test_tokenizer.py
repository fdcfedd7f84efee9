import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer, token_ids
from qwen_image_engine.runtime.text.tokenizer_form import MAX_BYTES


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "checkpoint"))


def test_saved_truncation_and_padding_are_off(copy: Path) -> None:
    path = copy / "processor" / "tokenizer.json"
    saved = Tokenizer.from_file(str(path))
    saved.enable_truncation(4)
    saved.enable_padding(length=64)
    saved.save(str(path))
    assert len(load_tokenizer(copy).encode("1" * 10).ids) == 10


def test_missing_file_says_what_to_do(copy: Path) -> None:
    (copy / "processor" / "tokenizer.json").unlink()
    with pytest.raises(QwenImageError, match=r"processor/tokenizer.json is missing; copy it"):
        load_tokenizer(copy)
    (copy / "processor" / "vocab.json").write_text("{}")
    (copy / "processor" / "merges.txt").write_text("")
    with pytest.raises(QwenImageError, match=r"is missing; vocab.json and merges.txt are there; make it"):
        load_tokenizer(copy)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2", b"\xff\xfe\x00", b'{"model": {"type": "BPE"}}'])
def test_malformed_file_is_named(copy: Path, content: bytes) -> None:
    (copy / "processor" / "tokenizer.json").write_bytes(content)
    with pytest.raises(QwenImageError, match=r"processor/tokenizer.json"):
        load_tokenizer(copy)


def test_missing_template_tokens_are_named(copy: Path) -> None:
    path = copy / "processor" / "tokenizer.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<|im_start|>"]
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(QwenImageError, match=r"no special token <\|im_start\|>; expected"):
        load_tokenizer(copy)


def test_file_beyond_the_largest_is_not_read(copy: Path) -> None:
    with (copy / "processor" / "tokenizer.json").open("r+b") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(QwenImageError, match=rf"has {MAX_BYTES + 1} bytes, expected at most {MAX_BYTES}"):
        load_tokenizer(copy)


def test_panic_of_the_library_is_an_error() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("(a+)+$"), "isolated")
    with pytest.raises(QwenImageError, match=r"fails on a text of 61 characters: .*retry-limit"):
        token_ids(tokenizer, "a" * 60 + "!")
