import pytest

from qwen_image_engine.runtime.cli.shared import stage_progress
from qwen_image_engine.runtime.cli.shared.stage_progress import Bar, StageProgress
from qwen_image_engine.runtime.system.progress import ProgressBar


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Bars as they are opened, (label, total), what they are advanced by, and their ends."""
    told: list[tuple[str, int]] = []

    class Watched(ProgressBar):
        def __init__(self, label: str, total: int, unit: str) -> None:
            super().__init__(label, total)
            told.append((f"{label} in {unit}", total))

        def advance(self, amount: int = 1) -> None:
            told.append(("advance", amount))

        def close(self) -> None:
            super().close()
            told.append(("close", 0))

    monkeypatch.setattr(stage_progress, "ProgressBar", Watched)
    return told


def test_stages_with_one_bar_share_it(told: list[tuple[str, int]]) -> None:
    with StageProgress(lambda stage: Bar("exporting", "bytes")) as progress:
        progress("graph", 0, 10)
        progress("weights", 4, 10)
        progress("graph", 10, 10)
    assert told == [("exporting in bytes", 10), ("advance", 0), ("advance", 4), ("advance", 6), ("close", 0)]
    assert list(progress.seconds) == ["graph", "weights"]
    assert min(progress.seconds.values()) >= 0


def test_a_stage_that_resumes_begins_its_bar_at_nothing(told: list[tuple[str, int]]) -> None:
    bars = {"hashing": Bar("hashing", "bytes"), "sampling": Bar("drawing", "steps", resumes=True)}
    with StageProgress(bars.__getitem__) as progress:
        progress("hashing", 3, 3)
        progress("sampling", 4, 10)
        progress("sampling", 6, 10)
    assert told == [
        *(("hashing in bytes", 3), ("advance", 3), ("close", 0)),
        *(("drawing in steps", 6), ("advance", 0), ("advance", 2), ("close", 0)),
    ]


def test_a_stage_that_begins_again_has_a_new_bar(told: list[tuple[str, int]]) -> None:
    with StageProgress(lambda stage: Bar(stage, "steps")) as progress:
        progress("search", 2, 2)
        progress("search", 1, 2)
    assert [label for label, _ in told] == 2 * ["search in steps", "advance", "close"]


def test_an_error_closes_the_bar(told: list[tuple[str, int]]) -> None:
    progress = StageProgress(lambda stage: Bar(stage, "steps"))
    progress("search", 0, 2)
    with pytest.raises(KeyboardInterrupt), progress:
        raise KeyboardInterrupt
    assert told[-1] == ("close", 0)
    assert list(progress.seconds) == ["search"]
