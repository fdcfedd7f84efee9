"""The form of tokenizer files: what Qwen's libraries write is read; others are refused by the name of the key."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.system.json_schema import SchemaError
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer
from qwen_image_engine.runtime.text.tokenizer_form import MAX_ADDED_LENGTH, MAX_ADDED_TOKENS, check_form, parse
from tests.support.paths import SHAPES
from tests.support.random_configurations import CONFIGURATIONS
from tests.support.random_processor import Spelling, write_processor

Document = dict[str, Any]


@pytest.fixture
def document() -> Document:
    found: Document = json.loads((SHAPES / "processor" / "tokenizer.json").read_text(encoding="utf-8"))
    return found


def put(place: str, value: Any) -> Callable[[Document], None]:
    """Return the change of the value at a place such as "pre_tokenizer.pretokenizers.0"."""

    def change(document: Any) -> None:
        *path, last = (int(key) if key.isdigit() else key for key in place.split("."))
        for key in path:
            document = document[key]
        document[last] = value

    return change


def splits_by(pattern: str) -> Document:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


def replaces(pattern: Document, content: str) -> Document:
    return {"type": "Replace", "pattern": pattern, "content": content}


TOKEN = {
    "id": 9, "content": "<a>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
    "special": False,
}  # fmt: skip

REFUSED = {
    "a pattern that backtracks": (put("pre_tokenizer", splits_by("(a+)+$")), "pre_tokenizer."),
    "another pattern": (put("pre_tokenizer.pretokenizers.0", splits_by("(a+)+$")), "pretokenizers[0].pattern.Regex is"),
    "a third step": (put("pre_tokenizer.pretokenizers", [splits_by(" ")] * 3), "pre_tokenizer.pretokenizers is"),
    "words of GPT-2": (put("pre_tokenizer.pretokenizers.1.use_regex", True), "pretokenizers[1].use_regex is true"),
    "a space before": (put("pre_tokenizer.pretokenizers.1.add_prefix_space", True), "add_prefix_space is true"),
    "a normaliser that backtracks": (put("normalizer", replaces({"Regex": "(a+)+$"}, "b")), "normalizer."),
    "letters doubled": (
        put("normalizer", {"type": "Sequence", "normalizers": [replaces({"String": "a"}, "aa")] * 40}),
        "normalizer.",
    ),
    "no normaliser": (put("normalizer", None), "normalizer is null"),
    "added tokens around the text": (put("post_processor", {"type": "TemplateProcessing"}), "post_processor.type is"),
    "another model": (put("model.type", "Unigram"), "model.type is"),
    "merges at random": (put("model.dropout", 0.5), "model.dropout is 0.5, expected null"),
    "a suffix": (put("model.end_of_word_suffix", "</w>"), "model.end_of_word_suffix is"),
    "whole words first": (put("model.ignore_merges", True), "model.ignore_merges is true, expected false"),
    "an id below 0": (put("model.vocab", {"a": -1}), "model.vocab is"),
    "an id that is true": (put("model.vocab", {"a": True}), "model.vocab is"),
    "bytes without a token": (put("model.vocab", {"a": 0}), "model.vocab lacks 255 of the 256 letters"),
    "a merge of three": (put("model.merges", [["a", "b", "c"]]), "model.merges is"),
    "no key of this version": (put("model.cache", 10**9), "model.cache is no key"),
    "another decoder": (put("decoder", {"type": "Fuse"}), "decoder.type is"),
    "a long added token": (put("added_tokens", [{**TOKEN, "content": "a" * (MAX_ADDED_LENGTH + 1)}]), "content is"),
    "many added tokens": (put("added_tokens", [TOKEN] * (MAX_ADDED_TOKENS + 1)), "added_tokens is"),
    "an added token without a flag": (put("added_tokens", [{"id": 9, "content": "<a>"}]), "single_word is missing"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_other_forms_are_refused_by_the_key(document: Document, case: str) -> None:
    change, word = REFUSED[case]
    check_form(document)
    change(document)
    with pytest.raises(SchemaError) as caught:
        check_form(document)
    assert word in str(caught.value)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize("document", [None, 1, "x", [], {}, {"model": {}}])
def test_other_json_is_refused(document: Any) -> None:
    with pytest.raises(SchemaError):
        check_form(document)


def test_key_that_is_there_twice_is_refused(document: Document) -> None:
    text = json.dumps(document)
    with pytest.raises(SchemaError, match='the key "normalizer" is there twice'):
        parse(text[:-1] + ', "normalizer": {"type": "NFC"}}')


def test_json_nested_too_deeply_is_refused() -> None:
    with pytest.raises(SchemaError, match="not JSON"):
        parse("[" * 10**6)


def test_file_of_another_form_is_named(tmp_path: Path, document: Document) -> None:
    put("normalizer", {"type": "NFKC"})(document)
    path = Path(shutil.copytree(SHAPES, tmp_path / "checkpoint")) / "processor" / "tokenizer.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(
        QwenImageError, match=r'tokenizer.json: normalizer.type is "NFKC", expected "NFC"; expected Qwen3'
    ):
        load_tokenizer(tmp_path / "checkpoint")


@pytest.mark.parametrize("spelling", ["transformers4", "transformers5"])
def test_files_that_transformers_writes_are_read(tmp_path: Path, spelling: Spelling) -> None:
    transformers = pytest.importorskip("transformers")
    written = tmp_path / "written"
    write_processor(written / "processor", CONFIGURATIONS["narrow"], spelling)
    expected = load_tokenizer(written).encode("what we've seen: 写着“你好”").ids
    if spelling == "transformers4":
        (written / "processor" / "tokenizer.json").unlink()  # made from vocab.json and merges.txt
    again = tmp_path / "again"
    transformers.AutoTokenizer.from_pretrained(written / "processor").save_pretrained(again / "processor")
    assert load_tokenizer(again).encode("what we've seen: 写着“你好”").ids == expected
