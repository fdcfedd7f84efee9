"""The folder of a report: checked before the work. The page is written completely or not at all."""

from __future__ import annotations

import importlib
from pathlib import Path

from qwen_image_engine.engines.core.entries import load_entry
from qwen_image_engine.engines.core.errors import QwenImageError, UsageError, one_line, pass_interruption
from qwen_image_engine.engines.core.files import open_regular, whole_file, whole_folder
from qwen_image_engine.runtime.system.files import check_writable
from qwen_image_engine.runtime.tools.report.sections import GENERATOR

PAGE = "index.html"
INSTALL = "pip install 'qwen-image-engine[report]'"
_HEAD_BYTES = 500

_PAGES = {
    "Benchmark": "runtime.tools.report.bench_page:bench_page",
    "KernelReport": "runtime.tools.report.kernels_page:kernels_page",
    "PictureComparison": "export.verify.pictures.page:pictures_page",
    "Verifications": "export.verify.report.page:verify_page",
}
"""Entries of the functions that make a page, as (result) -> str, by the class of the result."""


def check_report(folder: Path) -> None:
    """Check before the work that a report can be made and written.

    Raises:
        QwenImageError: matplotlib is not installed or does not load; or `folder` is a file, contains files that are not
            an earlier report, cannot be read or written, or has no parent folder.
    """
    try:
        importlib.import_module("matplotlib")
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise QwenImageError(
            f"matplotlib is not installed, and a report plots with it; install it with: {INSTALL}"
        ) from None
    except (ImportError, OSError) as error:
        pass_interruption(error)
        raise QwenImageError(f"matplotlib does not load ({one_line(error)}); install it again: {INSTALL}") from error
    _check_replaceable(folder)
    check_writable(folder / PAGE if folder.is_dir() else folder)


def write_report(result: object, folder: str | Path) -> Path:
    """Write the report of a result.

    Args:
        result: result of `bench`, `verify` or `inspect --kernels`. A result that was made with `pictures=True`
            contains pictures, and the page shows them.
        folder: a new folder, an empty folder, or the folder of an earlier report, which is replaced.

    Returns:
        The path of the page, `folder`/index.html.

    Raises:
        QwenImageError: `check_report` refuses the folder or finds no matplotlib, or the page cannot be written.
        UsageError: there is no page for this kind of result.
    """
    folder = Path(folder)
    check_report(folder)
    text = _page(result).encode("utf-8", errors="backslashreplace")
    try:
        if folder.is_dir():
            with whole_file(folder / PAGE) as file:
                file.write(text)
        else:
            with whole_folder(folder) as written:
                (written / PAGE).write_bytes(text)
    except OSError as error:
        raise QwenImageError(
            f"cannot write {folder}: {error.strerror or error}; choose a folder that can be written to"
        ) from error
    return folder / PAGE


def _page(result: object) -> str:
    name = type(result).__qualname__
    if name not in _PAGES:
        raise UsageError(
            f"no report of a {name}: expected a result of bench, verify or inspect --kernels ({', '.join(_PAGES)})"
        )
    text: str = load_entry(_PAGES[name])(result)
    return text


def _check_replaceable(folder: Path) -> None:
    """Raise if the report would be mixed with other files or would replace them.

    Raises:
        QwenImageError: `folder` is a file, cannot be read, or contains anything but an earlier report.
    """
    if not folder.is_dir():
        if folder.exists() or folder.is_symlink():
            raise QwenImageError(f"{folder} is a file; name a new folder for the report, or one with an earlier report")
        return
    try:
        names = sorted(path.name for path in folder.iterdir())
        foreign = [name for name in names if name != PAGE]
        if not foreign and names and GENERATOR not in _head(folder / PAGE):
            foreign = names
    except OSError as error:
        raise QwenImageError(f"cannot read {folder}: {error.strerror or error}; name another folder") from error
    if foreign:
        raise QwenImageError(
            f"{folder} is a folder with other things in it ({foreign[0]}); "
            "name a new folder for the report, or one with an earlier report"
        )


def _head(page: Path) -> str:
    with open_regular(page) as file:
        return file.read(_HEAD_BYTES).decode("utf-8", errors="replace")
