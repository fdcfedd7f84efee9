"""Trains `shapes` from nothing: `python -m qwen_image_engine.reference.shapes.train OUT`.

Autoencoder, tokenizer, text encoder alone, then text encoder and transformer together in two courses; docs/shapes.md
says how long each takes.
"""

import argparse
import functools
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from qwen_image_engine.reference.shapes.encoder_training import train_reader
from qwen_image_engine.reference.shapes.latent_pool import encode_pool
from qwen_image_engine.reference.shapes.layout import write_checkpoint
from qwen_image_engine.reference.shapes.sizes import encoder_config, transformer_config, vae_config
from qwen_image_engine.reference.shapes.text_batch import Reader
from qwen_image_engine.reference.shapes.tokenizer_training import train_tokenizer
from qwen_image_engine.reference.shapes.transformer_training import COURSES, Course, Denoiser, train_denoiser
from qwen_image_engine.reference.shapes.vae_training import train_vae
from qwen_image_engine.reference.vae import Vae

State = Mapping[str, Tensor]


def train(folder: Path, seed: int, device: str, work: Path | None) -> None:
    """Run the whole recipe and write the checkpoint to `folder`.

    Args:
        folder: Where the checkpoint goes.
        seed: Of everything random.
        device: "cpu" or "cuda".
        work: Where the weights of every finished stage are kept and found again, so that an interrupted run goes on.

    """
    vae = Vae(vae_config())
    vae.load_state_dict(
        _stage("autoencoder", work, seed, lambda: train_vae(vae_config(), seed, device, _report).state_dict())
    )
    # The latents are those of the autoencoder as it will be stored.
    vae.to(torch.bfloat16).float()
    tokenizer = train_tokenizer(seed)
    torch.manual_seed(seed)
    model = Denoiser(Reader(encoder_config(tokenizer.get_vocab_size())), transformer_config())

    def read() -> State:
        train_reader(model.reader, tokenizer, seed + 1, device, _report)
        return model.reader.state_dict()

    model.reader.load_state_dict(_stage("reader", work, seed, read))
    for number, course in enumerate(COURSES, start=1):
        learn = functools.partial(_denoise, model, vae, tokenizer, course, seed + 2 * number, device)
        model.load_state_dict(_stage(f"denoiser-{number}", work, seed, learn))
    write_checkpoint(folder, vae.cpu(), model, tokenizer, seed)
    _report(f"wrote {folder}")


def _denoise(model: Denoiser, vae: Vae, tokenizer: Tokenizer, course: Course, seed: int, device: str) -> State:
    buckets = encode_pool(vae, course.pool, course.scene_shares, seed, device)
    _report(f"encoded {sum(len(b.scenes) for b in buckets)} pictures")
    train_denoiser(model, tokenizer, course, buckets, seed + 1, device, _report)
    return model.state_dict()


def _stage(name: str, work: Path | None, seed: int, make: Callable[[], State]) -> State:
    """What `make` returns, or what an earlier run kept of it."""
    kept = work / f"{name}-{seed}.pt" if work is not None else None
    if kept is not None and kept.exists():
        state: State = torch.load(kept, weights_only=True)
        _report(f"{name}: from {kept}")
        return state
    start = time.monotonic()
    state = make()
    _report(f"{name}: {time.monotonic() - start:.0f} s")
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, kept)
    return state


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
