"""Every network against diffusers and transformers, in fp32 on random weights in three configurations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.transformers.transformer_qwenimage21 import QwenImage21KVCache
from torch import Tensor

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.networks.text_encoder import TextEncoder
from qwen_image_engine.reference.networks.transformer import Transformer
from qwen_image_engine.reference.networks.vae import Vae, up_halo
from qwen_image_engine.runtime.model.rope import encoder_rotary_tables, rotary_tables
from qwen_image_engine.runtime.model.sequence import TokenSequence, text_positions
from qwen_image_engine.runtime.model.tiles import draw_tiles
from qwen_image_engine.runtime.model.time import time_features
from tests.support.oracles import load_text_encoder, load_transformer, load_vae

# fp32 sums taken in another order differ by 1e-7 to 1e-6 after a few layers; a wrong term is 1e-3 and more.
TOLERANCE = 1e-5

TRANSFORMER = "transformer against diffusers, relative L2"

Within = Callable[[str, float, float], None]

# Text length, rows, columns: square, wide 1:6, tall; text of a single token and of more than the latents.
SEQUENCES = ((9, 4, 4), (1, 2, 12), (40, 6, 2))


@pytest.fixture(scope="module", params=["narrow", "odd", "deep"])
def folder(request: pytest.FixtureRequest, random_checkpoint: Callable[..., Path]) -> Path:
    return random_checkpoint(request.param)


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint.open(folder)


def load(checkpoint: Checkpoint, component: str, network: torch.nn.Module) -> Any:
    checkpoint.stored(component).load_into(network, torch.float32)
    return network.eval()


def error(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(scope="module")
def transformer_oracle(folder: Path) -> Any:
    return load_transformer(folder)


@pytest.fixture(scope="module")
def transformer(checkpoint: Checkpoint) -> Transformer:
    network: Transformer = load(checkpoint, "transformer", Transformer(checkpoint.transformer))
    return network


@pytest.fixture(scope="module")
def text_encoder_oracle(folder: Path) -> Any:
    return load_text_encoder(folder).model.language_model


@pytest.fixture(scope="module")
def text_encoder(checkpoint: Checkpoint) -> TextEncoder:
    network: TextEncoder = load(checkpoint, "text_encoder", TextEncoder(checkpoint.text_encoder))
    return network


@pytest.fixture(scope="module")
def vae_oracle(folder: Path) -> Any:
    return load_vae(folder)


@pytest.fixture(scope="module")
def vae(checkpoint: Checkpoint) -> Vae:
    network: Vae = load(checkpoint, "vae", Vae(checkpoint.vae))
    return network


class TestTransformer:
    @pytest.mark.parametrize("sequence", SEQUENCES)
    @torch.inference_mode()
    def test_prefix_and_step(
        self, transformer_oracle: Any, transformer: Transformer, sequence: tuple[int, int, int], within: Within
    ) -> None:
        text, rows, columns = sequence
        oracle, network = transformer_oracle, transformer
        config = network.config
        generator = torch.Generator().manual_seed(text)
        # Encoder states before the final norm are large and uneven, as here.
        states = 5 * torch.randn(2, text, config.context_in_dim, generator=generator).exp()
        latents = torch.randn(2, rows * columns, config.in_channels, generator=generator)
        layout = TokenSequence.text_to_image(text, rows, columns)
        prefix_tables = tables(layout.prefix, config.axes_dims_rope)
        target_tables = tables(layout.target, config.axes_dims_rope)

        cache = network.prefix(states[:1], *prefix_tables)  # one prompt for both images, and no timestep
        wide = network.prefix(states, *prefix_tables)
        oracle_cache = QwenImage21KVCache(config.num_layers)
        for sigma, mode in ((0.9371, "extract"), (0.1234, "cached")):
            features = torch.from_numpy(time_features(sigma))[None]
            arguments = {
                "hidden_states": latents,
                "encoder_hidden_states": states,
                "timestep": torch.full((2,), sigma),
                "img_shapes": [[(1, rows, columns)]] * 2,
                "img_mask": torch.arange(text + rows * columns // 4).expand(2, -1) >= text,
                "return_dict": False,
            }
            expected = oracle(**arguments)[0][:, -latents.shape[1] :]
            cached = oracle(**arguments, kv_cache=oracle_cache, kv_cache_mode=mode)[0][:, -latents.shape[1] :]
            step = network.step(latents, features, *target_tables, wide)
            within(TRANSFORMER, error(step, expected), TOLERANCE)
            within(TRANSFORMER, error(step, cached), TOLERANCE)
            one = network.step(latents[:1], features, *target_tables, cache)
            within(TRANSFORMER, error(one, expected[:1]), TOLERANCE)

        for (key, value), layer in zip(wide, oracle_cache.layer_caches, strict=True):
            oracle_key, oracle_value = layer.get()
            within("keys and values against diffusers, relative L2", error(key, oracle_key), TOLERANCE)
            within("keys and values against diffusers, relative L2", error(value, oracle_value), TOLERANCE)

    @torch.inference_mode()
    def test_padded_prompts_in_one_batch(self, transformer: Transformer) -> None:
        """Training takes prompts of different lengths at once: each row equals its own pass."""
        config, lengths, rows, columns = transformer.config, (3, 8), 2, 4
        padded = max(lengths)
        generator = torch.Generator().manual_seed(1)
        states = torch.randn(2, padded, config.context_in_dim, generator=generator)
        latents = torch.randn(2, rows * columns, config.in_channels, generator=generator)
        features = torch.from_numpy(np.stack([time_features(0.8), time_features(0.3)]))
        layouts = [TokenSequence.text_to_image(length, rows, columns) for length in lengths]
        targets = [tables(layout.target, config.axes_dims_rope) for layout in layouts]
        cos, sin = (torch.stack(table) for table in zip(*targets, strict=True))
        own = torch.arange(padded)[None] < torch.tensor(lengths)[:, None]
        mask = torch.nn.functional.pad(own, (0, rows * columns), value=True)[:, None, None]  # (B, 1, 1, P + N)
        cache = transformer.prefix(states, *tables(layouts[1].prefix, config.axes_dims_rope))
        together = transformer.step(latents, features, cos, sin, cache, mask)
        for row, length in enumerate(lengths):
            one = slice(row, row + 1)
            prefix_tables = tables(layouts[row].prefix, config.axes_dims_rope)
            alone_cache = transformer.prefix(states[one, :length], *prefix_tables)
            alone = transformer.step(latents[one], features[one], *targets[row], alone_cache)
            assert error(together[one], alone) < TOLERANCE


class TestTextEncoder:
    @pytest.mark.parametrize("length", [1, 23, 300])
    @torch.inference_mode()
    def test_states_before_the_final_norm(
        self,
        checkpoint: Checkpoint,
        text_encoder_oracle: Any,
        text_encoder: TextEncoder,
        length: int,
        within: Within,
    ) -> None:
        oracle, network, config = text_encoder_oracle, text_encoder, checkpoint.text_encoder
        ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(length))
        taken: list[Tensor] = []
        # transformers 5 returns the state after the norm, so diffusers takes the norm's input too.
        hook = oracle.norm.register_forward_hook(lambda module, inputs, output: taken.append(inputs[0]))
        oracle(input_ids=ids)
        hook.remove()

        embeddings = torch.nn.functional.embedding(
            ids, checkpoint.components["text_encoder"].read(checkpoint.token_embeddings().name)
        )
        cos, sin = encoder_rotary_tables(
            text_positions(length), config.head_dim, config.rope_theta, config.mrope_section
        )
        deepstack = [torch.zeros_like(embeddings)] * config.deepstack
        states = network(embeddings, torch.from_numpy(cos), torch.from_numpy(sin), deepstack)
        within("text encoder against transformers, relative L2", error(states, taken[0]), TOLERANCE)


class TestVae:
    @pytest.mark.parametrize("size", [(4, 4), (2, 12), (6, 2)])
    @torch.inference_mode()
    def test_encode_and_decode(
        self, checkpoint: Checkpoint, vae_oracle: Any, vae: Vae, size: tuple[int, int], within: Within
    ) -> None:
        rows, columns = size
        oracle, network = vae_oracle, vae
        generator = torch.Generator().manual_seed(rows)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1)
            for values in (oracle.config.latents_mean, oracle.config.latents_std)
        )

        image = torch.rand(2, 4, 16 * rows, 16 * columns, generator=generator) * 2 - 1
        encoded = (oracle.encode(image.unsqueeze(2)).latent_dist.mode() - mean) / std
        within("VAE encoder against diffusers, relative L2", error(network.encode(image), encoded[:, :, 0]), TOLERANCE)

        latents = torch.randn(2, checkpoint.vae.z_dim, rows, columns, generator=generator)
        decoded = oracle.decode(latents.unsqueeze(2) * std + mean).sample[:, :, 0]
        within("VAE decoder against diffusers, relative L2", error(network.decode(latents), decoded), TOLERANCE)
        assert float(decoded.abs().max()) == 1.0  # so the clamp took part
        unclamped = network.decoder(network.post_quant_conv(latents * network.std + network.mean))
        assert float(unclamped.abs().max()) > 1.0

    @torch.inference_mode()
    def test_the_halo_is_all_that_a_tile_depends_on(self, checkpoint: Checkpoint, vae: Vae) -> None:
        """A NaN reaches every pixel that depends on it, however little: random weights would hide the far ones."""
        halo = up_halo(checkpoint.vae)
        channels, cut = checkpoint.vae.decoder_base_dim * checkpoint.vae.dim_mult[-1], halo + 2
        features = torch.ones(1, channels, 2, 4 * cut)

        def reaches(latent: int, pixels: slice) -> bool:
            spoiled = features.clone()
            spoiled[..., 2 * latent : 2 * latent + 2] = torch.nan
            return bool(vae.image(spoiled)[..., pixels].isnan().any())

        before, after = slice(None, 16 * cut), slice(16 * cut, None)
        assert reaches(cut - halo, after)
        assert not reaches(cut - halo - 1, after)
        assert reaches(cut + halo - 1, before)
        assert not reaches(cut + halo, before)

    @torch.inference_mode()
    @pytest.mark.slow
    def test_tiles_are_the_whole_picture(self, checkpoint: Checkpoint, vae: Vae, within: Within) -> None:
        generator = torch.Generator().manual_seed(0)
        features = vae.features(torch.randn(1, checkpoint.vae.z_dim, 16, 17, generator=generator)).numpy()
        whole = vae.image(torch.from_numpy(features))
        found = torch.full_like(whole, torch.nan)
        for tile in draw_tiles(
            lambda part: vae.image(torch.from_numpy(part)).numpy(), features, up_halo(checkpoint.vae), most=6
        ):
            found[:, :, tile.rows, tile.columns] = torch.from_numpy(tile.image)
        within("tiles of the VAE decoder against the whole, relative L2", error(found, whole), TOLERANCE)


def tables(positions: Any, axes_dims: tuple[int, ...]) -> list[Tensor]:
    return [torch.from_numpy(table) for table in rotary_tables(positions, axes_dims)]
