from qwen_image_engine.engines.core.lru_cache import Kept


def test_the_least_recently_used_goes_first() -> None:
    kept: Kept[str, int] = Kept(30)
    for index, key in enumerate("abc"):
        kept.put(key, index, 10)
    kept.shrink("c")
    assert kept.get("a") == 0  # and is now the most recent
    kept.put("d", 3, 10)
    kept.shrink("d")
    assert [kept.get(key) for key in "abcd"] == [0, None, 2, 3]


def test_what_is_wanted_stays_however_large() -> None:
    kept: Kept[str, int] = Kept(30)
    kept.put("a", 0, 20)
    kept.put("b", 1, 100)
    kept.shrink("b")
    assert [kept.get(key) for key in "ab"] == [None, 1]


def test_room_is_made_before_it_is_taken() -> None:
    kept: Kept[str, int] = Kept(30)
    kept.put("a", 0, 15)
    kept.put("b", 1, 15)
    kept.shrink("", room=15)
    assert [kept.get(key) for key in "ab"] == [None, 1]
    kept.shrink("", room=31)
    assert kept.get("b") is None


def test_a_value_put_again_counts_once() -> None:
    kept: Kept[str, int] = Kept(30)
    for _ in range(5):
        kept.put("a", 0, 15)
    kept.put("b", 1, 15)
    kept.shrink("b")
    assert kept.get("a") == 0
