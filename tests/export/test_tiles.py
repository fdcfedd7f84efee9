"""Tiles of an exported decoder against its own whole picture."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.runtime.bundle.manifest import read_manifest
from qwen_image_engine.runtime.model.tiles import draw_tiles

# Pictures of 26 by 13 latents in 4 by 2 tiles, of 6 or 7 a side, and lying; fp32 in another order, as in `test_parity`.
SIZES = {"narrow": (26, 13), "odd": (13, 26)}
MOST = 7
LIMIT = 1e-5


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", ["narrow", "odd"])
def test_tiles_are_the_whole_picture(
    exported: Callable[..., Path], backend: str, name: str, within: Callable[[str, float, float], None]
) -> None:
    pytest.importorskip(backend)
    manifest = read_manifest(exported(name))
    mid, up = (
        load_engine(backend, exported(name) / entry.model, entry.contract)
        for entry in (manifest.components["vae_decoder_mid"], manifest.components["vae_decoder_up"])
    )
    latents = np.random.default_rng(7).standard_normal((1, manifest.dims.z, *SIZES[name]), np.float32)
    features = mid.run({"latents": latents})["features"]
    whole = up.run({"features": features})["image"]
    found = np.full_like(whole, np.nan)
    halo = manifest.facts.decoder_halo
    for tile in draw_tiles(lambda part: up.run({"features": part})["image"], features, halo, MOST):
        found[:, :, tile.rows, tile.columns] = tile.image
    error = float(np.linalg.norm(found - whole) / np.linalg.norm(whole))
    within(f"tiles of vae_decoder_up on {backend} against the whole, relative L2", error, LIMIT)
