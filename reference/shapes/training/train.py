"""The training of `shapes` from nothing: `python -m qwen_image_engine.reference.shapes.training.train OUT`.

The stages are: autoencoder, tokenizer, text encoder alone, text encoder and transformer together in two courses of
pictures from text, the reader again on edits, a course of edits, and the autoencoder's decoder again. docs/shapes.md
says how long each stage takes.
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

from qwen_image_engine.reference.networks.vae import Vae
from qwen_image_engine.reference.shapes.config import encoder_config, transformer_config, vae_config, vision_config
from qwen_image_engine.reference.shapes.training.decoder import train_decoder
from qwen_image_engine.reference.shapes.training.edit_reading import train_edit_reader
from qwen_image_engine.reference.shapes.training.encoder import train_reader
from qwen_image_engine.reference.shapes.training.latent_pool import encode_edits, encode_pool
from qwen_image_engine.reference.shapes.training.load import read_trained
from qwen_image_engine.reference.shapes.training.save import write_checkpoint
from qwen_image_engine.reference.shapes.training.text_batch import Reader
from qwen_image_engine.reference.shapes.training.tokenizer import train_tokenizer
from qwen_image_engine.reference.shapes.training.transformer import COURSES, EDITS, Course, Denoiser, train_denoiser
from qwen_image_engine.reference.shapes.training.vae import train_vae

State = Mapping[str, Tensor]


def train(
    folder: Path,
    seed: int,
    device: str,
    work: Path | None,
    trained: Path | None = None,
    minutes: float | None = None,
) -> None:
    """Run the whole recipe and write the checkpoint to `folder`.

    Args:
        folder: Folder of the checkpoint.
        seed: Seed of all random numbers.
        device: Device to train on: "cpu" or "cuda".
        work: Folder for the weights of every finished stage, so that an interrupted run continues; None to save none.
        trained: Checkpoint that already draws from text and learns to edit; None to train the first stages.
        minutes: Time limit of the course of edits [minutes; None for no limit].

    """
    if trained is not None:
        vae, model, tokenizer = read_trained(trained)
    else:
        vae, model, tokenizer = _learn_to_draw(seed, device, work)

    def read_edits() -> State:
        train_edit_reader(model.reader, tokenizer, seed + 101, device, _report)
        return model.reader.state_dict()

    def sharpen() -> State:
        train_decoder(vae, seed + 100, device, _report)
        return vae.state_dict()

    model.reader.load_state_dict(_stage("edit-reader", work, seed, read_edits))
    progress = None if work is None else work / f"edits-{seed}-part.pt"
    edit = functools.partial(_denoise, model, vae, tokenizer, EDITS, seed + 102, device, progress, minutes)
    model.load_state_dict(_stage("edits", work, seed, edit))
    vae.load_state_dict(_stage("decoder", work, seed, sharpen))
    write_checkpoint(folder, vae.cpu(), model, tokenizer, seed)
    _report(f"wrote {folder}")


def _learn_to_draw(seed: int, device: str, work: Path | None) -> tuple[Vae, Denoiser, Tokenizer]:
    vae = Vae(vae_config())
    vae.load_state_dict(
        _stage("autoencoder", work, seed, lambda: train_vae(vae_config(), seed, device, _report).state_dict())
    )
    # The latents are those of the autoencoder as it will be stored.
    vae.to(torch.bfloat16).float()
    tokenizer = train_tokenizer(seed)
    torch.manual_seed(seed)
    model = Denoiser(Reader(encoder_config(tokenizer.get_vocab_size()), vision_config()), transformer_config())

    def read() -> State:
        train_reader(model.reader, tokenizer, seed + 1, device, _report)
        return model.reader.state_dict()

    model.reader.load_state_dict(_stage("reader", work, seed, read))
    for number, course in enumerate(COURSES, start=1):
        learn = functools.partial(_denoise, model, vae, tokenizer, course, seed + 2 * number, device)
        model.load_state_dict(_stage(f"denoiser-{number}", work, seed, learn))
    return vae, model, tokenizer


def _denoise(
    model: Denoiser,
    vae: Vae,
    tokenizer: Tokenizer,
    course: Course,
    seed: int,
    device: str,
    kept: Path | None = None,
    minutes: float | None = None,
) -> State:
    buckets = encode_pool(vae, course.pool, course.scene_shares, seed, device)
    buckets += encode_edits(vae, course.edits, seed, device)
    _report(f"encoded {sum(len(b.subjects) for b in buckets)} scenes and edits")
    train_denoiser(model, tokenizer, course, buckets, seed + 1, device, _report, kept, minutes)
    return model.state_dict()


def _stage(name: str, work: Path | None, seed: int, make: Callable[[], State]) -> State:
    """Return the weights from `make`, or the weights that an earlier run saved."""
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
    parser.add_argument("--from", type=Path, dest="trained", help="checkpoint that draws already and learns to edit")
    parser.add_argument("--minutes", type=float, help="of the course of edits, at most")
    args = parser.parse_args()
    train(args.output, args.seed, args.device, args.work, args.trained, args.minutes)


if __name__ == "__main__":
    main()
