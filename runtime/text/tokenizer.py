"""The loader of a checkpoint's or a bundle's tokenizer."""

from pathlib import Path

from tokenizers import Tokenizer

from qwen_image_engine.engines.core.errors import QwenImageError

TEMPLATE_TOKENS = ("<|im_start|>", "<|im_end|>")
"""Special tokens of the prompt template. A tokenizer without them would read the template as plain text."""


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `processor/tokenizer.json` below `folder`, with truncation and padding off.

    Args:
        folder: folder of the checkpoint (diffusers layout) or of the bundle.

    Raises:
        QwenImageError: the file is missing, unreadable or no tokenizer, or lacks the tokens of the prompt template.
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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise QwenImageError(f"cannot read {path}: {error}") from error
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises bare Exception for every malformed file
        raise QwenImageError(f"{path} is not a tokenizer of the tokenizers library: {error}") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    missing = [token for token in TEMPLATE_TOKENS if tokenizer.encode(token).ids != [tokenizer.token_to_id(token)]]
    if missing:
        raise QwenImageError(f"{path} has no special token {', '.join(missing)}; expected the tokenizer of Qwen3-VL")
    return tokenizer
