"""The errors of the server's API, in the form of OpenAI's: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from qwen_image_engine.engines.core.errors import Cancelled, QwenImageError, UsageError, is_memory

INVALID = "invalid_request_error"
FAILED = "server_error"


class ApiError(Exception):
    """The error that a request is answered with.

    Attributes:
        status: HTTP status.
        message: one sentence for the client.
        param: name of the request field at fault; None if there is none.
        code: word for programs; None if there is none.
        headers: headers of the reply, such as `Retry-After`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    @property
    def kind(self) -> str:
        """Return OpenAI's type of the error."""
        kinds = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
        return kinds.get(self.status, INVALID if self.status < 500 else FAILED)

    def document(self) -> dict[str, Any]:
        """Return the body of the reply."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


@contextmanager
def blamed(param: str) -> Iterator[None]:
    """Turn a `UsageError` of the block into a 400 that names a request field.

    Raises:
        ApiError: the block raised `UsageError`.
    """
    try:
        yield
    except UsageError as error:
        raise ApiError(400, error.for_client, param, "invalid_value") from error


def drawing_error(error: BaseException) -> ApiError:
    """Return the reply to a request whose picture could not be prepared or drawn.

    An internal error's text may name paths of this machine, which are the log's alone.
    """
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UsageError):
        return ApiError(400, error.for_client, code="invalid_value")
    if isinstance(error, Cancelled):
        return ApiError(503, "the server is stopping, and this picture was cancelled; ask again later", code="draining")
    if is_memory(error):
        text = "there is not enough memory for this picture; ask for a smaller size, fewer images or fewer pictures"
        return ApiError(503, text, code="out_of_memory", headers={"Retry-After": "10"})
    known = "the picture could not be drawn" if isinstance(error, QwenImageError) else "the server has a fault"
    return ApiError(500, f"{known}; its log has the reason, under the id of this reply's header x-request-id")
