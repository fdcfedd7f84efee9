"""Tiles on a toy decoder that sees as far as it says."""

import numpy as np
import pytest
from numpy.typing import NDArray

from qwen_image_engine.runtime.model.tiles import TILE_LATENTS, draw_tiles, spans

HALO = 3


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 96, 127, 128, 129, 172, 500])
@pytest.mark.parametrize("halo", [0, 7, 90])
def test_spans_cover_a_side_once_in_few_equal_parts(size: int, halo: int) -> None:
    found = list(spans(size, halo))
    assert [latent for span in found for latent in range(span.start, span.stop)] == list(range(size))
    lengths = [span.stop - span.start for span in found]
    assert max(lengths) <= TILE_LATENTS
    assert max(lengths) - min(lengths) <= 1
    assert len(found) == -(-size // TILE_LATENTS)
    for span in found:
        assert (span.read_start, span.read_stop) == (max(0, span.start - halo), min(size, span.stop + halo))


def toy(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Each pixel is the sum of its own features and of those `HALO` latents to the four sides, zeros beyond the edge.

    Sums of whole numbers, so that their order does not matter.
    """
    reach = 2 * HALO
    padded = np.pad(features, [(0, 0), (0, 0), (reach, reach), (reach, reach)])
    middle, start, stop = slice(reach, -reach), slice(0, -2 * reach), slice(2 * reach, None)
    views = ((middle, middle), (start, middle), (stop, middle), (middle, start), (middle, stop))
    return sum(padded[:, :, rows, columns] for rows, columns in views).repeat(8, 2).repeat(8, 3)


def drawn(features: NDArray[np.float32], halo: int, most: int) -> tuple[NDArray[np.float32], int]:
    """The picture put together, NaN where no tile is, and how many tiles it took."""
    picture = np.full((1, 4, 8 * features.shape[2], 8 * features.shape[3]), np.nan, np.float32)
    count = 0
    for tile in draw_tiles(toy, features, halo, most):
        picture[:, :, tile.rows, tile.columns] = tile.image
        count += 1
    return picture, count


@pytest.mark.parametrize(("rows", "columns", "count"), [(13, 9, 6), (5, 6, 2), (5, 5, 1), (1, 11, 3)])
def test_tiles_make_the_whole_picture(rows: int, columns: int, count: int) -> None:
    features = np.random.default_rng(rows).integers(-9, 9, (1, 4, 2 * rows, 2 * columns)).astype(np.float32)
    picture, tiles = drawn(features, HALO, most=5)
    assert tiles == count
    assert np.array_equal(picture, toy(features))
    if count > 1:
        assert not np.array_equal(drawn(features, HALO - 1, most=5)[0], toy(features))
