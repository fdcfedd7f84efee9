"""The replies of the image endpoints, in OpenAI's forms, and the events of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response

from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.fields import Endpoint

_EVENTS: Mapping[Endpoint, str] = {"generations": "image_generation", "edits": "image_edit"}
_QUALITIES = ("low", "medium", "high", "xhigh", "max")


@dataclass(frozen=True)
class Tokens:
    """The tokens of a request.

    Attributes:
        text: tokens of the prompts.
        images: tokens of the reference images.
        picture: tokens of one picture.
    """

    text: int
    images: int
    picture: int

    def document(self, pictures: int) -> dict[str, Any]:
        """Return the `usage` of a reply with a number of pictures."""
        read, drawn = self.text + self.images, self.picture * pictures
        return {
            "input_tokens": read,
            "input_tokens_details": {"text_tokens": self.text, "image_tokens": self.images},
            "output_tokens": drawn,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
            "total_tokens": read + drawn,
        }


@dataclass(frozen=True)
class About:
    """The facts that each reply repeats.

    Attributes:
        endpoint: endpoint of the request.
        background: "transparent" or "opaque".
        output_format: format of the files.
        quality: the request's `quality`, which changes nothing.
        size: size of the pictures.
    """

    endpoint: Endpoint
    background: str
    output_format: str
    quality: str | None
    size: str

    def reply(self, data: list[dict[str, Any]], tokens: Tokens) -> dict[str, Any]:
        """Return the reply that holds all pictures."""
        return {
            "created": int(time.time()),
            "data": data,
            "background": self.background,
            "output_format": self.output_format,
            "size": self.size,
            "seed": data[0]["seed"],
            "usage": tokens.document(len(data)),
            **({"quality": self.quality} if self.quality in _QUALITIES else {}),
        }

    def event(self, kind: str, **fields: Any) -> bytes:
        """Return a server-sent event, `partial_image` or `completed`."""
        name = f"{_EVENTS[self.endpoint]}.{kind}"
        document = {
            "type": name,
            "created_at": int(time.time()),
            "size": self.size,
            "quality": self.quality if self.quality in _QUALITIES else "auto",
            "background": self.background,
            "output_format": self.output_format,
            **fields,
        }
        return f"event: {name}\ndata: {json.dumps(document)}\n\n".encode()


def error_event(error: ApiError) -> bytes:
    """Return the server-sent event of an error after the head of the reply was sent."""
    return f"event: error\ndata: {json.dumps({'type': 'error', **error.document()})}\n\n".encode()


class JsonReply(Response):
    """A reply in JSON. Letters beyond ASCII are escaped: a text of the request may have half a character."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return json.dumps(content, allow_nan=False).encode("ascii")


def error_reply(error: ApiError) -> JsonReply:
    """Return the reply of an error."""
    return JsonReply(error.document(), error.status, error.headers)
