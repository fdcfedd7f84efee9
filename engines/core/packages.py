"""Packages of backends, imported when they are asked for, with the line that installs one that is missing."""

from importlib import import_module
from typing import Any

from qwen_image_engine.engines.core.errors import QwenImageError, one_line, pass_interruption


def import_package(module: str, extra: str) -> Any:
    """Import the package `module`, which the extra `extra` of this distribution installs.

    Raises:
        QwenImageError: it is not installed, or installed and does not load.
    """
    install = f"pip install 'qwen-image-engine[{extra}]'"
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name == module:
            raise QwenImageError(f"{module} is not installed; install it with: {install}") from None
        raise QwenImageError(
            f"{module} needs the package {error.name}, which is not installed; install it again with: {install}"
        ) from error
    except (ImportError, OSError) as error:
        pass_interruption(error)
        raise QwenImageError(
            f"{module} is installed and does not load ({one_line(error)}); install it again with: {install}"
        ) from error
