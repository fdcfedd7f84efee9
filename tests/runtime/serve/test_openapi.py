"""The OpenAPI document: it is valid, and no request that schemathesis makes of it ends in a 500.

Cases are bounded in number, and the same in every run. A request that the schema allows may be refused: that width and
height are multiples of 32, or that a text has 1,100 tokens at most, is no schema's to say.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import schemathesis
from openai.types.image_edit_params import ImageEditParamsBase
from openai.types.image_generate_params import ImageGenerateParamsBase

from qwen_image_engine.runtime.sampling import schedule
from qwen_image_engine.runtime.serve.api.fields import ENDPOINTS, RequestForm, request_fields
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.api.openapi import openapi_document
from tests.support.images import patches
from tests.support.numpy_engines import Journal, numpy_pipeline
from tests.support.served import Served, png, served

LIMITS = Limits(picture_pixels=1024 * 1024, picture_side=1024, queue=4)
CASES = 40
CAT = png(patches(96, 64))
LATER = {"complexity", "frame_count", "frame_duration_ms", "svg", "markup"}
"""Fields of OpenAI's that say how other formats, or other models' planning, are done; they are refused as unknown."""


@contextmanager
def not_rewritten() -> Iterator[None]:
    """Imports of the block are as they lie: pytest would rewrite the assertions in all of schemathesis."""
    finders = sys.meta_path[:]
    sys.meta_path[:] = [finder for finder in finders if not type(finder).__module__.startswith("_pytest.")]
    try:
        yield
    finally:
        sys.meta_path[:] = finders


with not_rewritten():
    from schemathesis.specs.openapi.checks import positive_data_acceptance


@pytest.fixture(scope="module")
def small_server(checkpoint: Path) -> Iterator[Served]:
    """Pictures of 'auto' have a million pixels, so they have few steps where a request does not name any."""
    with pytest.MonkeyPatch.context() as patch, served(numpy_pipeline(checkpoint, Journal()), limits=LIMITS) as found:
        patch.setattr(schedule, "DEFAULT_STEPS", 2)
        yield found


def document() -> dict[str, Any]:
    fields = request_fields(LIMITS)
    return openapi_document({endpoint: RequestForm(fields, endpoint) for endpoint in ENDPOINTS})


def test_openais_fields_are_known() -> None:
    fields = request_fields(Limits())
    for endpoint, known in (("generations", ImageGenerateParamsBase), ("edits", ImageEditParamsBase)):
        names = {field.name for field in fields if endpoint in field.where}
        assert set(known.__annotations__) - names == LATER & set(known.__annotations__)
        assert {"stream"} <= names


def test_the_document_is_the_table() -> None:
    paths = json.loads(json.dumps(document()))["paths"]
    schema = paths["/v1/images/generations"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert schema["required"] == ["prompt"]
    assert schema["additionalProperties"] is False
    assert schema["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 10}
    assert schema["properties"]["solver"]["default"] == "euler"
    assert "image" not in schema["properties"]
    form = paths["/v1/images/edits"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert form["required"] == ["prompt", "image"]


def operations() -> list[tuple[str, str]]:
    return [(path, method) for path, methods in document()["paths"].items() for method in methods]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "method"), operations())
def test_no_request_ends_in_a_500(small_server: Served, path: str, method: str) -> None:
    with not_rewritten():
        schema = schemathesis.openapi.from_url(f"{small_server.url}/openapi.json")
    operation = schema[path][method.upper()]

    @hypothesis.given(case=operation.as_strategy())
    @hypothesis.settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    def run(case: Any) -> None:
        if isinstance(case.body, dict) and case.body.get("image"):
            case.body["image"] = [CAT] * min(len(case.body["image"]), 2)  # schemathesis's own are a pixel wide
        response = case.call()
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    run()
    assert small_server.metric("failures_total") == 0
    assert small_server.log("fault") == []
