"""A workaround for torchvision with a CPU build of torch, which lacks torchvision's compiled operators."""

from __future__ import annotations

import sys
import types


def leave_out_operators() -> None:
    """Make transformers and diffusers importable, which import torchvision. Call this function before those imports.

    The one torchvision module that needs the operators at import is replaced by an empty one. No code here calls an
    operator.
    """
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
