"""Bundles whose weight files are symlinks, as in the hub's cache: drawn by every CPU engine, and nothing is copied."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qwen_image_engine.engines.backends import load_engine
from qwen_image_engine.engines.core.errors import QwenImageError
<from qwen_image_engine.engines.core.graph.linked_weights import weights_in_folder
>