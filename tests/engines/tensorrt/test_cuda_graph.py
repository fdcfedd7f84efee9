from qwen_image_engine.engines.tensorrt.cuda_graph import Replay


def test_the_first_call_runs_the_second_is_captured_the_rest_replayed() -> None:
    replay = Replay()
    assert [replay.next("a") for _ in range(4)] == ["run", "capture", "replay", "replay"]


def test_a_change_begins_again() -> None:
    replay = Replay()
    held = ["a", "a", "a", "b", "b", "a", "a", "a"]
    assert [replay.next(item) for item in held] == [
        *("run", "capture", "replay"),
        *("run", "capture"),
        *("run", "capture", "replay"),
    ]


def test_a_call_that_failed_begins_again() -> None:
    replay = Replay()
    for _ in range(3):
        replay.next("a")
    replay.forget()
    assert [replay.next("a") for _ in range(3)] == ["run", "capture", "replay"]
