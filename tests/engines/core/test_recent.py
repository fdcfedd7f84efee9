from qwen_image_engine.engines.core.lru_cache import Recent


def test_the_one_whose_use_is_longest_ago_goes_before_the_new_one_is_made() -> None:
    recent: Recent[str, str] = Recent(2)
    held: list[str] = []

    def make(name: str) -> str:
        held.append(",".join(sorted(recent._values)))
        return name.upper()

    for name in ("a", "b", "a", "c", "a", "b"):
        assert recent.get(name, lambda name=name: make(name)) == name.upper()  # type: ignore[misc]
    assert held == ["", "a", "a", "a"]  # for b, c and b again: a was used in between
    recent.clear()
    recent.get("a", lambda: make("a"))
    assert held[-1] == ""
