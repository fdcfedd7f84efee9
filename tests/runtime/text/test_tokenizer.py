import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer


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
