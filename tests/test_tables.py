"""Tables by component outside of `engines/core`: each has a row for every component."""

from collections.abc import Mapping

import pytest

from qwen_image_engine.engines.core.components import COMPONENTS
from qwen_image_engine.engines.plans import scratch
from qwen_image_engine.export.estimate import duration
from qwen_image_engine.reference import components, load


@pytest.mark.parametrize("table", [scratch._OF_ONE, duration._TRACING, components._FORWARD])
def test_every_component_has_a_row(table: Mapping[str, object]) -> None:
    assert table.keys() == COMPONENTS.keys()


def test_every_network_is_built() -> None:
    assert load._BUILT.keys() == {row.network for row in COMPONENTS.values()}
