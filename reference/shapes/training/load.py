"""The reader of a `shapes` checkpoint, for more training."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import nn

from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.load import load_network
from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.pipeline import embedding_table
from qwen_image_engine.reference.shapes.config import vision_config
from qwen_image_engine.reference.shapes.training.text_batch import Reader
from qwen_image_engine.reference.shapes.training.transformer import Denoiser
from qwen_image_engine.runtime.text.tokenizer import load_tokenizer


def read_trained(folder: Path) -> tuple[Vae, Denoiser, Tokenizer]:
    """Return autoencoder, denoiser and tokenizer of a checkpoint; the vision tower only if it has the recipe's sizes.

    Raises:
        QwenImageError: the checkpoint is missing, incomplete or damaged.

    """
    checkpoint = Checkpoint.open(folder)
    model = Denoiser(Reader(checkpoint.text_encoder, vision_config()), checkpoint.transformer)
    model.mean.copy_(torch.tensor(checkpoint.vae.latents_mean))
    model.std.copy_(torch.tensor(checkpoint.vae.latents_std))
    table = embedding_table(checkpoint)
    rows = table.rows(torch.arange(checkpoint.text_encoder.vocab_size).numpy())
    model.reader.embed_tokens.weight.data.copy_(torch.from_numpy(rows))
    parts: dict[str, nn.Module] = {"transformer": model.transformer, "text_encoder": model.reader.encoder}
    if checkpoint.vision == vision_config():
        parts["vision"] = model.reader.vision
    for name, network in parts.items():
        network.load_state_dict(load_network(checkpoint, name).state_dict())
    vae = Vae(checkpoint.vae)
    vae.load_state_dict(load_network(checkpoint, "vae").state_dict())
    return vae, model, load_tokenizer(folder)
