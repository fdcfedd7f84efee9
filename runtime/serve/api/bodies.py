"""The reading of request bodies: JSON and forms, bounded in bytes, count and time before anything is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import Message

from qwen_image_engine.engines.core.errors import QwenImageError
from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.fields import Field, RequestForm
from qwen_image_engine.runtime.serve.api.kinds import Picture, Sigmas
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.system.json_schema import parse
from qwen_image_engine.runtime.system.text import plural, size_text

_PART_BYTES = 256 << 10
"""Largest text of a form. A file's bytes count towards the whole body alone."""
_MOST_TEXTS = 2000
"""Most texts of a form: 1,000 noise levels take one each."""


async def read_json(request: Request, form: RequestForm, limits: Limits) -> dict[str, Any]:
    """Return the checked values of a JSON body.

    Raises:
        ApiError: the body is of another type, too large, too slow or no JSON object, or a field is wrong.
        ClientDisconnect: the client left.
    """
    _check_type(request, "application/json")
    async with _bounded(request, limits.json_bytes, limits) as bounded:
        body = await bounded.body()
    try:
        values = parse(body)
    except QwenImageError as error:
        raise ApiError(400, f"the body is {error}; send one JSON object", code="invalid_json") from error
    if not isinstance(values, dict):
        raise ApiError(400, "the body is no JSON object; send one with a 'prompt'", code="invalid_json")
    return form.values(values)


@asynccontextmanager
async def read_form(request: Request, form: RequestForm, limits: Limits) -> AsyncIterator[dict[str, Any]]:
    """Yield the checked values of a multipart form, whose files are closed after the block.

    The value of a field that may have several files is a list of `UploadFile`. Files of more than a megabyte are on
    the disk meanwhile.

    Raises:
        ApiError: the body is of another type, too large, too slow or no form, there is no room for its files, or a
            field is wrong.
        ClientDisconnect: the client left.
    """
    _check_type(request, "multipart/form-data")
    files = sum(field.many for field in form.fields.values() if isinstance(field.kind, Picture))
    try:
        async with _bounded(request, limits.form_bytes, limits) as bounded:
            data = await bounded.form(max_files=files, max_fields=_MOST_TEXTS, max_part_size=_PART_BYTES)
    except HTTPException as error:
        raise ApiError(400, _form_fault(error.detail, files), code="invalid_form") from error
    except OSError as error:
        raise ApiError(507, "this server has no room for the files of the form; ask again later") from error
    try:
        yield form.values(_values(data, form))
    finally:
        await data.close()


def _check_type(request: Request, expected: str) -> None:
    found = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if found != expected:
        raise ApiError(415, f"the body's content type is {found or 'missing'!r}, expected {expected}")


def _form_fault(detail: str, files: int) -> str:
    """Return the fault of a form in a sentence, from the library's own, which name its parts and Python's."""
    faults = {
        "Missing boundary": "the form's content type has no boundary; send multipart/form-data; boundary=…",
        "Too many files": f"the form has more than {plural(files, 'file')}; leave some out",
        "Too many fields": f"the form has more than {_MOST_TEXTS} texts; leave some out",
        "Part exceeded": f"a text of the form is larger than {size_text(_PART_BYTES)}; send a file as a part with a "
        "file name",
    }
    found = (text for start, text in faults.items() if detail.startswith(start))
    return next(found, "the body is no form that can be read; send it as multipart/form-data, as browsers do")


@asynccontextmanager
async def _bounded(request: Request, most: int, limits: Limits) -> AsyncIterator[Request]:
    """Yield the request with a body that ends in an error where it is larger than `most`, or comes too slowly.

    Raises:
        ApiError: the body is too large or too slow.
    """
    too_large = ApiError(413, f"the body is larger than {size_text(most)}; send less", code="body_too_large")
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > most:
        raise too_large
    read, began = 0, asyncio.get_running_loop().time()
    latest = began + limits.body_s

    async def receive() -> Message:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        if read > most:
            raise too_large
        # Each byte buys time, up to what a whole body has: whoever sends less than the rate runs out of it.
        paid = began + limits.body_grace_s + read / limits.body_rate
        time.reschedule(min(latest, paid) if message.get("more_body") else latest)
        return message

    try:
        async with asyncio.timeout_at(min(latest, began + limits.body_grace_s)) as time:
            yield Request(request.scope, receive)
    except TimeoutError as error:
        text = (
            f"the body came at less than {size_text(int(limits.body_rate))} a second after {limits.body_grace_s:g} s, "
            f"or took longer than {limits.body_s:g} s; send it faster"
        )
        raise ApiError(408, text, code="body_too_slow") from error


def _values(data: FormData, form: RequestForm) -> dict[str, Any]:
    """Return the fields of a form as values, those that may be given several times as lists."""
    found: dict[str, Any] = {}
    for key, item in data.multi_items():
        field = form.field(key.removesuffix("[]"))
        if isinstance(field.kind, Sigmas) and key.endswith("[]"):
            levels = found.setdefault(field.name, [])
            if not isinstance(item, str) or not isinstance(levels, list):
                raise ApiError(400, f"'{key}' stands beside a file or a name, expected numbers alone", field.name)
            levels.append(_number(item))
        elif isinstance(field.kind, Picture):
            _add_file(found, field, item)
        elif isinstance(item, UploadFile):
            raise ApiError(400, f"'{field.name}' is a file, expected a text", field.name, "invalid_type")
        elif key.endswith("[]"):
            raise ApiError(400, f"Unknown parameter: '{key}'.", key, "unknown_parameter")
        elif field.name in found:
            raise ApiError(400, f"'{field.name}' is given twice, expected once", field.name, "invalid_value")
        else:
            found[field.name] = field.kind.from_text(item)
    return found


def _add_file(found: dict[str, Any], field: Field, item: str | UploadFile) -> None:
    if not isinstance(item, UploadFile):
        field.kind.check(field.name, item)
    files = found.setdefault(field.name, [])
    if len(files) == field.many:
        raise ApiError(
            400, f"there came more than {plural(field.many, 'file')} '{field.name}'; leave some out", field.name
        )
    files.append(item)


def _number(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text
