"""Which components a bundle has: all of the checkpoint's, or without those that reference images alone need."""

from __future__ import annotations

from collections.abc import Collection

from qwen_image_engine.engines.core.contract import FOR_REFERENCES
from qwen_image_engine.engines.core.errors import UsageError
from qwen_image_engine.reference.checkpoint.checkpoint import Checkpoint
from qwen_image_engine.reference.components import NETWORK, components


def selected(checkpoint: Checkpoint, without: Collection[str] = ()) -> tuple[str, ...]:
    """Components in the order they run.

    Raises:
        UsageError: what is to be left out is none of `FOR_REFERENCES`; without one no reference image can be read, so
            all that they need goes with it.
    """
    wrong = [name for name in without if name not in FOR_REFERENCES]
    if wrong:
        raise UsageError(f"--without {wrong[0]}: only {' and '.join(FOR_REFERENCES)} can be left out")
    absent = (*FOR_REFERENCES, "prefix_image") if without else ()
    return tuple(name for name in components(checkpoint) if name not in absent)


def networks(names: Collection[str]) -> tuple[str, ...]:
    """The networks of components."""
    return tuple(dict.fromkeys(NETWORK[name] for name in names))
