import pytest

from qwen_image_engine.engines.core.lru_cache import LruCache


def test_the_least_recently_used_goes_first() -> None:
    cache: LruCache[str, int] = LruCache(30)
    for index, key in enumerate("abc"):
        cache.put(key, index, 10)
    cache.shrink("c")
    assert cache.get("a") == 0  # and is now the most recent
    cache.put("d", 3, 10)
    cache.shrink("d")
    assert [cache.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_what_is_pinned_stays_however_large() -> None:
    cache: LruCache[str, int] = LruCache(30)
    cache.put("a", 0, 20)
    cache.put("b", 1, 100)
    cache.shrink("b")
    assert [cache.get(key) for key in "ab"] == [None, 1]


def test_room_is_made_before_it_is_taken() -> None:
    cache: LruCache[str, int] = LruCache(30)
    cache.put("a", 0, 15)
    cache.put("b", 1, 15)
    cache.shrink("", room=15)
    assert [cache.get(key) for key in "ab"] == [None, 1]
    cache.shrink("", room=31)
    assert cache.get("b") is None


def test_a_value_put_again_counts_once() -> None:
    cache: LruCache[str, int] = LruCache(30)
    for _ in range(5):
        cache.put("a", 0, 15)
    cache.put("b", 1, 15)
    cache.shrink("b")
    assert cache.get("a") == 0


def test_an_evicted_value_is_gone_before_the_new_one_is_made() -> None:
    cache: LruCache[str, str] = LruCache(2)
    held: list[str] = []

    def make(name: str) -> str:
        held.append(",".join(sorted(cache._values)))
        return name.upper()

    for name in ("a", "b", "a", "c", "a", "b"):
        assert cache.get_or_make(name, lambda name=name: make(name)) == name.upper()  # type: ignore[misc]
    assert held == ["", "a", "a", "a"]  # for b, c and b again: a was used in between
    cache.clear()
    cache.get_or_make("a", lambda: make("a"))
    assert held[-1] == ""


def test_a_value_that_cannot_be_made_is_not_kept() -> None:
    cache: LruCache[str, int] = LruCache(1)
    with pytest.raises(ZeroDivisionError):
        cache.get_or_make("a", lambda: 1 // 0)
    assert cache.get("a") is None
    assert cache.get_or_make("a", lambda: 1) == 1
