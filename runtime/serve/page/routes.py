"""The routes of the page: the files beside this module, with the headers that let the page reach this server alone."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import PurePosixPath

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_START = "index.html"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
"""Scripts, styles and requests of this server alone; pictures also from the page's own memory. A form is never sent by
the browser itself, which would write its prompt into an address."""
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def page_routes() -> list[BaseRoute]:
    """Return the routes `/` and `/page/NAME`. They need no API key: the files hold nothing of the server's."""
    room = files(__package__)
    found = {file.name: file.read_bytes() for file in room.iterdir() if PurePosixPath(file.name).suffix in _TYPES}
    tags = {name: f'"{hashlib.sha256(data).hexdigest()[:32]}"' for name, data in found.items()}

    async def send(request: Request) -> Response:
        name = request.path_params.get("name", _START)
        if name not in found:
            raise HTTPException(404)
        headers = {**_HEADERS, "ETag": tags[name]}
        if request.headers.get("if-none-match") == tags[name]:
            return Response(status_code=304, headers=headers)
        return Response(found[name], media_type=_TYPES[PurePosixPath(name).suffix], headers=headers)

    return [Route("/", send, methods=["GET"]), Route("/page/{name}", send, methods=["GET"])]
