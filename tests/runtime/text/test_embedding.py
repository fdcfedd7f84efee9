"""Rows of the token embedding table, against numpy and torch's own conversion."""

from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.text.embedding import EmbeddingTable

IDS = np.array([3, 0, 4, 3])


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("offset", [0, 3, 4097])
def test_rows_at_any_offset(tmp_path: Path, dtype: str, offset: int) -> None:
    torch = pytest.importorskip("torch")
    table = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).to(getattr(torch, dtype))
    file = tmp_path / "table"
    file.write_bytes(b"x" * offset + table.view(torch.uint8).numpy().tobytes() + b"tail")
    rows = EmbeddingTable.open(file, offset, dtype, (5, 6)).rows(IDS)
    assert rows.dtype == np.float32
    assert np.array_equal(rows, table.float().numpy()[IDS])


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    file = tmp_path / "table"
    with pytest.raises(QwenImageError, match="cannot read"):
        EmbeddingTable.open(file, 0, "float32", (5, 6))
    file.write_bytes(bytes(5 * 6 * 4))
    with pytest.raises(QwenImageError, match="has 120 bytes, the token embeddings end at byte 124"):
        EmbeddingTable.open(file, 4, "float32", (5, 6))
    with pytest.raises(QwenImageError, match="embeddings are int8, expected float32, bfloat16, float16"):
        EmbeddingTable.open(file, 0, "int8", (5, 6))
    table = EmbeddingTable.open(file, 0, "float32", (5, 6))
    with pytest.raises(QwenImageError, match="token 5 is beyond the 5 rows"):
        table.rows(np.array([1, 5]))
