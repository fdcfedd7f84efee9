"""The loader of a checkpoint's or a bundle's tokenizer."""

from pathlib import Path

from tokenizers import Tokenizer

from qwen_image_engine.engines.core.errors import QwenImageError, one_line
from qwen_image_engine.engines.core.files import read_regular, regular_size
from qwen_image_engine.runtime.system.json_schema import SchemaError
from qwen_image_engine.runtime.text.tokenizer_form import MAX_BYTES, check_form, parse

TEMPLATE_TOKENS = ("<|im_start|>", "<|im_end|>")
"""Special tokens of the prompt template. A tokenizer without them would read the template as plain text."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `processor/tokenizer.json` below `folder`, with truncation and padding off.

    Args:
        folder: folder of the checkpoint (diffusers layout) or of the bundle.

    Raises:
        QwenImageError: the file is missing, unreadable, larger than `MAX_BYTES` or no tokenizer, is not in Qwen3-VL's
            form, or lacks the tokens of the prompt template.
    """
    path = folder / "processor" / "tokenizer.json"
    if not path.is_file():
        hint = "copy it from the checkpoint"
        if (path.parent / "vocab.json").is_file() and (path.parent / "merges.txt").is_file():
            hint = (
                "vocab.json and merges.txt are there; make it from them with transformers: "
                "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)"
            )
        raise QwenImageError(f"{path} is missing; {hint}")
    text = _read(path)
    try:
        check_form(parse(text))
    except SchemaError as error:
        raise QwenImageError(f"{path}: {error}; expected Qwen3-VL's tokenizer, copy the released one") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except BaseException as error:
        if not _is_failure(error):
            raise
        raise QwenImageError(
            f"{path} is not a tokenizer of the tokenizers library: {one_line(error)}; copy it from the checkpoint"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    missing = [token for token in TEMPLATE_TOKENS if token_ids(tokenizer, token) != [tokenizer.token_to_id(token)]]
    if missing:
        raise QwenImageError(f"{path} has no special token {', '.join(missing)}; expected the tokenizer of Qwen3-VL")
    return tokenizer


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Return the token ids of a text.

    Raises:
        QwenImageError: the library fails on the text.
    """
    try:
        ids: list[int] = tokenizer.encode(text).ids
    except BaseException as error:
        if not _is_failure(error):
            raise
        raise QwenImageError(
            f"the tokenizer fails on a text of {len(text)} characters: {one_line(error)}; shorten it"
        ) from error
    return ids


def _read(path: Path) -> str:
    try:
        size = regular_size(path)
        if size > MAX_BYTES:
            raise QwenImageError(f"{path} has {size} bytes, expected at most {MAX_BYTES}; copy it from the checkpoint")
        return read_regular(path, MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QwenImageError(f"cannot read {path}: {error}") from error


def _is_failure(error: BaseException) -> bool:
    """Return whether the library raised an error: a bare Exception, or a panic, whose class PyO3 does not export."""
    kind = type(error)
    return isinstance(error, Exception) or (kind.__module__, kind.__name__) == ("pyo3_runtime", "PanicException")
