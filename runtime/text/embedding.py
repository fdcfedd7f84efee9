"""The token embedding table. Rows are gathered from the mapped file, so that 151,936 rows never enter memory."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qwen_image_engine.engines.core.bfloat16 import from_bfloat16
from qwen_image_engine.engines.core.device_array import size_bytes
from qwen_image_engine.engines.core.dtypes import DTYPES, PRECISIONS
from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.engines.core.files import open_regular


@dataclass(frozen=True, eq=False)
class EmbeddingTable:
    """The rows of one tensor, read from a memory-mapped file."""

    stored: NDArray[Any]
    dtype: str
    file: Path

    @classmethod
    def open(cls, file: Path, offset: int, dtype: str, shape: tuple[int, int]) -> Self:
        """Map the table.

        Args:
            file: any file that holds the tensor in row-major order, such as a .safetensors file.
            offset: offset of the tensor's first byte in the file.
            dtype: dtype of the tensor: "bfloat16", "float16" or "float32", little-endian.
            shape: shape of the tensor, (vocabulary, hidden).

        Raises:
            QwenImageError: the dtype is not supported, or the file is missing or ends before the table does.
        """
        names = [row.name for row in PRECISIONS.values()]
        if dtype not in names:
            raise QwenImageError(f"{file}: the token embeddings are {dtype}, expected {', '.join(names)}")
        end = offset + size_bytes(shape, dtype)
        try:
            with open_regular(file) as opened:
                size = os.fstat(opened.fileno()).st_size
                if size < end:
                    raise QwenImageError(
                        f"{file} has {size} bytes, the token embeddings end at byte {end}; copy it again"
                    )
                stored = np.memmap(opened, DTYPES[dtype].numpy, "r", offset, shape)
        except OSError as error:
            raise QwenImageError(f"cannot read {file}: {error.strerror or error}") from error
        return cls(stored, dtype, file)

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the rows of the ids (T,) as (T, hidden) float32. Every stored dtype converts exactly.

        Raises:
            QwenImageError: an id is beyond the table: table and tokenizer belong to different models.
        """
        vocabulary = self.stored.shape[0]
        if ids.size and not 0 <= ids.min() <= ids.max() < vocabulary:
            raise QwenImageError(
                f"{self.file}: token {ids.max()} is beyond the {vocabulary} rows of the token embeddings; "
                "the tokenizer is of another model"
            )
        rows = np.asarray(self.stored[ids])
        if self.dtype == "bfloat16":
            return from_bfloat16(rows)
        return rows.astype(np.float32)
