"""A small Qwen2-style tokenizer, trained here, and prompts in ten scripts."""

import json
import random
import unicodedata
from pathlib import Path

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from qwen_image_engine.runtime.pipeline import QwenImage
from tests.support.numpy_engines import Journal, numpy_pipeline

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
)

QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

SENTENCES = {
    "latin": "A small red circle left of the café's blue square, it's naïve and it'll say “Grüße” in Łódź",
    "cyrillic": "Большой красный круг над синим квадратом и жёлтый треугольник, ёлка, їжак",
    "greek": "Ένας κόκκινος κύκλος πάνω από ένα μπλε τετράγωνο και ένα πράσινο τρίγωνο",
    "arabic": "دائرة حمراء صغيرة فوق مربع أزرق كبير مع كلمة مَرْحَبًا على اليمين",
    "hebrew": "עיגול אדום קטן מעל ריבוע כחול גדול עם המילה שָׁלוֹם",
    "devanagari": "नीले वर्ग के ऊपर एक छोटा लाल वृत्त और हरा त्रिभुज",
    "thai": "วงกลมสีแดงเล็กๆ เหนือสี่เหลี่ยมสีน้ำเงินและสามเหลี่ยมสีเขียว",
    "han": "一个红色的小圆形在蓝色的大正方形上面,背景是透明的。右边写着“你好”",
    "kana": "あかいまるが、アオイ シカクの うえに あります。ばっくはとうめいデス",
    "hangul": "작은 빨간 원이 큰 파란 사각형 위에 있고 배경은 투명합니다",
}

EXTRAS = (
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    " \u00a0",
    "123 4567",
    "½",
    "🙂",
    "👩‍🚀",
    "{}",
    "{0}",
    "%s",
    "'LL",
    "…!?",
    "ﬁ",
    "\u200b",
)


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """200 prompts, 20 in each script: composed and decomposed, with spaces, digits, emoji and special tokens."""
    rng = random.Random(0)
    made = []
    for sentence in SENTENCES.values():
        for index in range(20):
            words = [*sentence.split(" "), str(index)]
            for _ in range(index // 2):
                words.insert(rng.randrange(len(words) + 1), rng.choice(EXTRAS))
            text = rng.choice(("", " ")).join(words) if index % 5 == 4 else " ".join(words)
            if index % 3 == 1:
                text = unicodedata.normalize("NFD", text)
            if index % 4 == 3:
                at = rng.randrange(len(text))
                text = text[:at] + rng.choice(SPECIAL_TOKENS[:-1]) + text[at:]  # not an image's slot
            if index % 7 == 6:
                text = rng.choice(("\n", " ", "\t\n")) + text + rng.choice((" ", "\n", "  \n"))
            made.append(text)
    return made


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> Path:
    """A folder with `processor/tokenizer.json` and its `tokenizer_config.json`, as transformers saves them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=700, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(prompts[::2], trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])

    folder = tmp_path_factory.mktemp("checkpoint")
    processor = folder / "processor"
    processor.mkdir()
    tokenizer.save(str(processor / "tokenizer.json"))
    config = {
        "tokenizer_class": "Qwen2Tokenizer",
        "pad_token": "<|endoftext|>",
        "eos_token": "<|im_end|>",
        "model_max_length": 262144,
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}",
    }
    (processor / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture
def journal() -> Journal:
    """The journal of the toy engines of `pipeline`."""
    return Journal()


@pytest.fixture
def pipeline(checkpoint: Path, journal: Journal) -> QwenImage:
    """The real host side on toy engines."""
    return numpy_pipeline(checkpoint, journal)
