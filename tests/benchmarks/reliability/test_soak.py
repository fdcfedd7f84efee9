"""The soak: its requests differ in shape and are the same in every run, and its summary counts from the right one."""

from benchmarks.reliability.soak import EVERY, SIDES, WARM, WORDS, Drawn, drawings, summary


def test_requests_are_of_many_shapes_and_always_the_same() -> None:
    found = list(drawings(1000))
    assert found == list(drawings(1000))
    assert {drawing.width for drawing in found} == {drawing.height for drawing in found} == set(SIDES)
    lengths = {len(drawing.prompt.split()) for drawing in found}
    assert (min(lengths), max(lengths)) == WORDS
    assert len(set(found)) > 950


def test_growth_counts_from_the_hundredth_request() -> None:
    soaked = [Drawn(0.5, 0.25, 1000 + number, "") for number in range(1, 301)]
    found = summary(soaked, [Drawn(1, 1, 0, ""), Drawn(3, 2, 0, ""), Drawn(9, 9, 0, "")])
    assert found["growth_bytes"] == 300 - WARM
    assert list(found["resident_bytes"].items())[:2] == [("1", 1001), (str(EVERY), 1000 + EVERY)]
    assert found["resident_bytes"]["300"] == 1300
    assert (found["list_s"], found["list_cpu_s"], found["repeated_s"], found["repeated_cpu_s"]) == (150, 75, 3, 2)
