"""torchvision beside a CPU build of torch, which lacks its compiled operators."""

from __future__ import annotations

import sys
import types


def leave_out_operators() -> None:
    """Let transformers and diffusers, which import torchvision, be imported; call it before they are.

    The one module of it that needs the operators when it is imported is left out; nothing here calls an operator.
    """
    sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
