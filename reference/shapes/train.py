"""Trains `shapes` from nothing: `python -m qwen_image_engine.reference.shapes.train OUT`.

Autoencoder, tokenizer, text encoder alone, then text encoder and transformer together: 75 minutes on two busy cores.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import torch

from qwen_image_engine.reference.shapes.encoder_training import train_reader
from qwen_image_engine.reference.shapes.layout import write_checkpoint
from qwen_image_engine.reference.shapes.sizes import encoder_config, transformer_config, vae_config
from qwen_image_engine.reference.shapes.text_batch import Reader
from qwen_image_engine.reference.shapes.tokenizer_training import train_tokenizer
from qwen_image_engine.reference.shapes.transformer_training import encode_pool, train_denoiser
from qwen_image_engine.reference.shapes.vae_training import train_vae
from qwen_image_engine.reference.vae import Vae


def train(folder: Path, seed: int, device: str, work: Path | None) -> None:
    """Run the whole recipe and write the checkpoint to `folder`.

    Args:
        folder: Where the checkpoint goes.
        seed: Of everything random.
        device: "cpu" or "cuda".
        work: Where the trained autoencoder is kept and found again, so that an interrupted run goes on from it.

    """
    kept = work / f"vae-{seed}.pt" if work is not None else None
    if kept is not None and kept.exists():
        vae = Vae(vae_config())
        vae.load_state_dict(torch.load(kept, weights_only=True))
    else:
        vae = train_vae(vae_config(), seed, device, _report)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save(vae.state_dict(), kept)
    # The latents are those of the autoencoder as it will be stored.
    vae.to(torch.bfloat16).float()
    tokenizer = train_tokenizer(seed)
    torch.manual_seed(seed)
    reader = Reader(encoder_config(tokenizer.get_vocab_size())).to(device)
    train_reader(reader, tokenizer, seed + 1, device, _report)
    buckets, mean, std = encode_pool(vae, seed + 2, device)
    _report(f"encoded {sum(len(b.scenes) for b in buckets)} pictures")
    model = train_denoiser(reader, transformer_config(), tokenizer, buckets, seed + 3, device, _report)
    config = dataclasses.replace(vae_config(), latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))
    write_checkpoint(folder, vae.cpu(), config, model, tokenizer, seed)
    _report(f"wrote {folder}")


def _report(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    """Parse the command line and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="folder of the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--work", type=Path, help="folder for intermediate weights, to go on after an interruption")
    args = parser.parse_args()
    train(args.output, args.seed, args.device, args.work)


if __name__ == "__main__":
    main()
