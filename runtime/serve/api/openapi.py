"""The OpenAPI document of the server, made from the table of request fields."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from qwen_image_engine.runtime.serve.api.fields import Endpoint, Field, RequestForm
from qwen_image_engine.runtime.serve.api.kinds import Picture

_TYPES: Mapping[Endpoint, str] = {"generations": "application/json", "edits": "multipart/form-data"}
_SUMMARIES: Mapping[Endpoint, str] = {
    "generations": "Draw pictures of a prompt",
    "edits": "Draw pictures of a prompt and reference images",
}
_REFUSALS: Mapping[int, str] = {
    400: "a field is missing, unknown or wrong; `param` names it",
    401: "the API key is missing or wrong",
    403: "the request comes from a page of another origin",
    404: "there is no such model",
    408: "the body came too slowly",
    413: "the body is too large",
    415: "the body has another content type",
    429: "the queue is full, or too many bodies are being read; the header Retry-After says when to ask again",
    500: "the picture could not be drawn",
    503: "the server is stopping, or has not enough memory",
    507: "there is no room for a temporary file",
}
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_DATA = {
    "type": "object",
    "required": ["seed"],
    "properties": {"b64_json": {"type": "string"}, "url": {"type": "string"}, "seed": {"type": "integer"}},
}
_PICTURES = {
    "type": "object",
    "required": ["created", "data", "background", "output_format", "size", "seed", "usage"],
    "properties": {
        "created": {"type": "integer"},
        "data": {"type": "array", "items": _DATA},
        "background": {"type": "string", "enum": ["transparent", "opaque"]},
        "output_format": {"type": "string", "enum": ["png", "webp", "jpeg"]},
        "quality": {"type": "string"},
        "size": {"type": "string"},
        "seed": {"type": "integer"},
        "usage": {
            "type": "object",
            "required": ["input_tokens", "output_tokens", "total_tokens"],
            "properties": {name: {"type": "integer"} for name in ("input_tokens", "output_tokens", "total_tokens")},
        },
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {
        "id": {"type": "string"},
        "object": {"type": "string", "enum": ["model"]},
        "created": {"type": "integer"},
        "owned_by": {"type": "string"},
    },
}
_MODELS = {
    "type": "object",
    "required": ["object", "data"],
    "properties": {
        "object": {"type": "string", "enum": ["list"]},
        "data": {"type": "array", "items": {"$ref": "#/components/schemas/Model"}},
    },
}
_STATUS = {"type": "object", "required": ["status"], "properties": {"status": {"type": "string"}}}


def openapi_document(forms: Mapping[Endpoint, RequestForm]) -> dict[str, Any]:
    """Return the document of OpenAPI 3.1. `forms` are the fields of each endpoint."""
    paths: dict[str, Any] = {
        f"/v1/images/{endpoint}": {"post": _pictures(endpoint, form)} for endpoint, form in forms.items()
    }
    paths["/v1/images/files/{token}.{suffix}"] = {"get": _file()}
    paths["/v1/models"] = {"get": _get("List the models", "Models", 401, 403)}
    paths["/v1/models/{name}"] = {
        "get": {**_get("Describe a model", "Model", 401, 403, 404), "parameters": [_parameter("name")]}
    }
    paths["/health"] = {"get": _get("Tell that the process is alive", "Status", 403)}
    paths["/ready"] = {"get": _get("Tell whether requests are taken", "Status", 403, 503)}
    paths["/metrics"] = {"get": _plain("Return counters in Prometheus's form", "text/plain")}
    paths["/openapi.json"] = {"get": _plain("Return this document", "application/json")}
    schemas = {"Pictures": _PICTURES, "Error": _ERROR, "Model": _MODEL, "Models": _MODELS, "Status": _STATUS}
    return {
        "openapi": "3.1.0",
        "info": {"title": "qwen-image-engine", "version": version("qwen-image-engine")},
        "paths": paths,
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "security": [{"key": []}, {}],
    }


def _pictures(endpoint: Endpoint, form: RequestForm) -> dict[str, Any]:
    fields = form.fields.values()
    body = {
        "type": "object",
        "required": [field.name for field in fields if field.required],
        "properties": {field.name: _schema(field, endpoint) for field in fields},
        "additionalProperties": False,
    }
    drawn = {"application/json": {"schema": _named("Pictures")}, "text/event-stream": {}}
    return {
        "summary": _SUMMARIES[endpoint],
        "requestBody": {"required": True, "content": {_TYPES[endpoint]: {"schema": body}}},
        "responses": {"200": {"description": "the pictures, or events", "content": drawn}, **_errors(*_REFUSALS)},
    }


def _schema(field: Field, endpoint: Endpoint) -> dict[str, Any]:
    """Return the JSON schema of a field. JSON may have null in the place of any default."""
    schema = field.kind.schema()
    if isinstance(field.kind, Picture) and field.many > 1:
        schema = {"type": "array", "items": schema, "minItems": 1, "maxItems": field.many}
    elif endpoint == "generations" and not field.required:
        schema = {"anyOf": [schema, {"type": "null"}]}
    default = {} if field.default is None else {"default": field.default}
    return {**schema, "description": field.meaning, **default}


def _get(summary: str, schema: str, *refusals: int) -> dict[str, Any]:
    found = {"description": "the answer", "content": {"application/json": {"schema": _named(schema)}}}
    return {"summary": summary, "responses": {"200": found, **_errors(*refusals)}}


def _plain(summary: str, media_type: str) -> dict[str, Any]:
    found = {"description": "the answer", "content": {media_type: {}}}
    return {"summary": summary, "responses": {"200": found, **_errors(401, 403)}}


def _file() -> dict[str, Any]:
    content: dict[str, Any] = {f"image/{suffix}": {} for suffix in ("png", "webp", "jpeg")}
    return {
        "summary": "Send a picture of `response_format: url`",
        "parameters": [_parameter("token"), _parameter("suffix")],
        "responses": {"200": {"description": "the picture", "content": content}, **_errors(403, 404)},
    }


def _parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": _named("Error")}}
    return {str(status): {"description": _REFUSALS[status], "content": content} for status in statuses}


def _named(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}
