"""`qwen-image inspect`: what a checkpoint or a bundle is."""

import argparse
from pathlib import Path

from qwen_image_engine.runtime.commands.report import Report, size_text, table

SUMMARY = "what a checkpoint or a bundle is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument("subject", metavar="CHECKPOINT|BUNDLE", help="folder, or a checkpoint's name in the hub cache")


def execute(options: argparse.Namespace) -> Report:
    """Read JSON and headers."""
    from qwen_image_engine.runtime.manifest import MANIFEST

    folder = Path(options.subject).expanduser()
    return _bundle(folder) if (folder / MANIFEST).is_file() else _checkpoint(options.subject)


def _checkpoint(name: str) -> Report:
    from qwen_image_engine.reference.checkpoint import Checkpoint

    checkpoint = Checkpoint.open(name)
    ignored = checkpoint.ignored_keys()
    networks = [
        {
            "network": item.name,
            "class": item.layout.class_name,
            "tensors": len(item.tensors),
            "parameters": item.parameters,
            "bytes": item.nbytes,
            "dtypes": item.dtypes,
            "files": [file.name for file in item.files],
            "keys_that_change_nothing": list(ignored[item.name]),
        }
        for item in checkpoint.components.values()
    ]
    grid = checkpoint.index.get("sample_sigmas")
    document = {
        "kind": "checkpoint",
        "name": checkpoint.name,
        "path": str(checkpoint.folder),
        "licence": checkpoint.licence(),
        "config_sha256": checkpoint.config_sha256(),
        "fixed_sigmas": grid,
        "networks": networks,
    }
    rows = [("network", "class", "stored as", "tensors", "parameters", "bytes")]
    rows += [
        (
            item.name,
            item.layout.class_name,
            "+".join(item.dtypes),
            str(len(item.tensors)),
            f"{item.parameters:,}",
            size_text(item.nbytes),
        )
        for item in checkpoint.components.values()
    ]
    lines = [
        f"checkpoint {checkpoint.name} in {checkpoint.folder}",
        f"licence {checkpoint.licence()}",
        f"configuration sha256 {checkpoint.config_sha256()}",
        f"schedule {f'fixed, {len(grid)} steps' if grid else 'any number of steps'}",
        "",
        *table(rows, right=(3, 4, 5)),
        "",
        "keys of config.json that change nothing here:",
        *(f"  {network}: {', '.join(keys) or 'none'}" for network, keys in ignored.items()),
    ]
    return Report(document, lines)
