"""Places of bodies: how many there are for all and for one client, and which addresses are one client."""

from contextlib import ExitStack

import pytest

from qwen_image_engine.runtime.serve.api.errors import ApiError
from qwen_image_engine.runtime.serve.api.limits import Limits
from qwen_image_engine.runtime.serve.api.slots import BodySlots, client_of


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.1", "::ffff:10.0.0.1", True),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("2001:db8:1:2::1", "10.0.0.1", False),
        (None, None, True),
        (None, "testclient", False),
    ],
)
def test_clients(first: str | None, second: str | None, same: bool) -> None:
    assert (client_of(first) == client_of(second)) == same


def test_places_are_given_back_and_shared() -> None:
    slots = BodySlots(Limits(bodies=3, client_bodies=2))
    with ExitStack() as taken:
        for _ in range(2):
            taken.enter_context(slots.one("10.0.0.1"))
        with pytest.raises(ApiError, match=r"^2 requests are being read from your address, which is") as mine:
            taken.enter_context(slots.one("10.0.0.1"))
        taken.enter_context(slots.one("10.0.0.2"))
        with pytest.raises(ApiError, match=r"^3 requests are being read, which is the most; ask again in a second$"):
            taken.enter_context(slots.one("10.0.0.3"))
    assert (mine.value.status, mine.value.code, mine.value.headers) == (429, "too_many_uploads", {"Retry-After": "1"})
    for _ in range(5):  # a block that fails gives its place back too
        with pytest.raises(ZeroDivisionError), slots.one("10.0.0.1"):
            raise ZeroDivisionError
    assert not slots._taken


def test_by_default_one_client_takes_half() -> None:
    assert Limits().client_bodies * 2 == Limits().bodies
