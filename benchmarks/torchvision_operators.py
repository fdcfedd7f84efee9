"""Imported before diffusers or transformers: lets them import torchvision beside a CPU build of torch.

There its compiled operators are missing, and the one module that needs them when it is imported is left out; nothing
here calls an operator.
"""

import sys
import types

sys.modules.setdefault("torchvision._meta_registrations", types.ModuleType("torchvision._meta_registrations"))
