"""`qwen-image serve`: OpenAI's image endpoints over HTTP, drawn with bundles' engines."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.runtime.cli.shared.arguments import byte_count
from qwen_image_engine.runtime.cli.shared.extras import serve_packages
from qwen_image_engine.runtime.cli.shared.result import VerbResult
from qwen_image_engine.runtime.cli.verbs.run import add_engine_arguments
from qwen_image_engine.runtime.system.text import plural

if TYPE_CHECKING:
    from qwen_image_engine.runtime.serve.models import Models

SUMMARY = "serve OpenAI's image endpoints over HTTP"

KEY_VARIABLE = "QWEN_IMAGE_API_KEY"
_LONGEST_GRACE_S = 86_400.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags."""
    parser.add_argument(
        "bundles",
        nargs="+",
        metavar="[NAME=]BUNDLE",
        help="a bundle, and its name in requests (the folder's); the first is for requests without one",
    )
    add_engine_arguments(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (8000)")
    parser.add_argument(
        "--memory",
        choices=("resident", "sequential"),
        default="resident",
        help="keep every engine loaded, or one at a time (resident)",
    )
    parser.add_argument(
        "--memory-budget",
        type=byte_count,
        metavar="BYTES",
        help="of the weights of loaded bundles together, as 24GB or 24GiB; the one unused longest is freed (no limit)",
    )
    parser.add_argument("--queue", type=int, default=16, help="requests that may wait; more are refused with 429 (16)")
    parser.add_argument(
        "--grace", type=float, default=30.0, metavar="S", help="seconds to finish the work after SIGTERM (30)"
    )
    parser.add_argument(
        "--api-key", metavar="KEY", help=f"that requests must have; better in the variable {KEY_VARIABLE}"
    )
    parser.add_argument("--allow-remote", action="store_true", help="listen beyond this machine without an API key")
    parser.add_argument("--log-prompts", action="store_true", help="write prompts to the log")


def execute(options: argparse.Namespace) -> VerbResult:
    """Serve until a signal, and report what was drawn."""
    if not 0 <= options.queue <= 10_000:
        raise UsageError(f"--queue {options.queue}: expected 0 to 10000 requests")
    if not 0 <= options.port <= 65535:
        raise UsageError(f"--port {options.port}: expected 0 to 65535")
    if not 0 <= options.grace <= _LONGEST_GRACE_S:
        raise UsageError(f"--grace {options.grace:g}: expected 0 to {_LONGEST_GRACE_S:g} seconds")
    key = options.api_key if options.api_key is not None else os.environ.get(KEY_VARIABLE) or None
    if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
        raise UsageError("the API key is empty or has letters that no header can hold, expected printable ASCII")
    with serve_packages():
        from qwen_image_engine.runtime.serve.api.limits import Limits
        from qwen_image_engine.runtime.serve.app import Service
        from qwen_image_engine.runtime.serve.guard import Access
        from qwen_image_engine.runtime.serve.log import Log
        from qwen_image_engine.runtime.serve.server import Server, address_of, check_reach, listen, loopback_names
    check_reach(options.host, key, options.allow_remote)
    models = _models(options)
    limits = Limits(queue=options.queue)
    access = Access(key, loopback_names(options.host))
    service = Service.create(models, Log(prompts=options.log_prompts), limits, access)
    listener = listen(options.host, options.port)
    address = address_of(listener)
    Server(service, listener, options.grace).run()
    drawn = service.metrics.drawn()
    return VerbResult({"address": address, "pictures": drawn}, [f"{plural(drawn, 'picture')} drawn"])


def _models(options: argparse.Namespace) -> "Models":
    """Open the bundles.

    Raises:
        UsageError: a name is not valid or is there twice; otherwise as `Model.open` raises.
        QwenImageError: a bundle is missing, changed, incomplete or of another schema version, or its engine does not
            run here.
    """
    from qwen_image_engine.runtime.serve.models import Model, Models

    models = []
    for word in options.bundles:
        name, equals, folder = word.partition("=")
        if not equals or Path(word).exists():  # a folder may have such a name
            name, folder = "", word
        path = Path(folder)
        name = name or path.resolve().name
        models.append(Model.open(name, path, options.engine, options.memory, options.threads))
    return Models(models, options.memory_budget)
