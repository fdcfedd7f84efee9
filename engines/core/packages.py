"""Imports of the backends' packages, with the command that installs a missing package in the error."""

from importlib import import_module
from pathlib import Path
from typing import Any

from qwen_image_engine.engines.core.errors import QwenImageError, is_memory, one_line, pass_interruption


def import_package(module: str, extra: str) -> Any:
    """Import the package `module` and return it. The extra `extra` of this distribution installs it.

    Raises:
        QwenImageError: the package is not installed, is installed and does not load, or needs a home folder.
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
        if is_memory(error):
            raise QwenImageError(f"{module} does not load, because memory ran out ({one_line(error)})") from error
        raise QwenImageError(
            f"{module} is installed and does not load ({one_line(error)}); install it again with: {install}"
        ) from error
    except RuntimeError as error:
        pass_interruption(error)
        if not _homeless():
            raise
        # OpenVINO 2026.4 looks there for the consent to its telemetry.
        raise QwenImageError(
            f"{module} does not load where there is no home folder ({one_line(error)}); set HOME to a folder"
        ) from error


def _homeless() -> bool:
    try:
        Path.home()
    except RuntimeError:
        return True
    return False
