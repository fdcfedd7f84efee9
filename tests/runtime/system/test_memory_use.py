"""The peak of this process's memory while something runs, also where it is given back at once."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from qwen_image_engine.runtime.system import memory_use
from qwen_image_engine.runtime.system.memory_use import MemoryUse, MemoryWatch
from qwen_image_engine.runtime.timing import Timings

ROOM = 100_000_000

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="only Linux tells")


def hold() -> None:
    """Fill memory, and give it back after a while that a sample falls into."""
    room = bytearray(ROOM)
    room[::4096] = b"\1" * len(range(0, ROOM, 4096))
    time.sleep(10 * memory_use.SAMPLE_S)


def test_a_peak_is_of_its_stage_alone() -> None:
    with MemoryWatch() as watch:
        before = watch.peak()
        hold()
        peak = watch.peak()
        watch.restart()
        after = watch.peak()
        overall = watch.overall()
    assert before is not None
    assert peak is not None
    assert after is not None
    assert before.anonymous_bytes + 0.9 * ROOM < peak.anonymous_bytes <= peak.resident_bytes
    assert after.anonymous_bytes < peak.anonymous_bytes - 0.9 * ROOM
    assert overall == peak.peak(overall)


@pytest.mark.process
def test_the_highest_peak_is_not_missed_between_two_readings() -> None:
    """In a process of its own: what this one held at most was a test of before."""
    program = (
        "from qwen_image_engine.runtime.system import memory_use as memory\n"
        "memory.SAMPLE_S = 60.0\n"
        "with memory.MemoryWatch() as watch:\n"
        "    watch.restart()\n"
        f"    bytearray(b'x') * {ROOM}\n"
        "    first = watch.peak()\n"
        "    watch.restart()\n"
        f"    bytearray(b'x') * {ROOM // 2}\n"
        "    second = watch.peak()\n"
        "    print(first.resident_bytes, second.resident_bytes, watch.overall().resident_bytes)\n"
    )
    printed = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    first, second, overall = map(int, printed.split())
    assert first == overall > ROOM
    assert second < first - 0.9 * ROOM  # known limit: a lower one is missed


def test_mapped_files_are_not_anonymous(tmp_path: Path) -> None:
    import mmap

    (tmp_path / "file").write_bytes(bytes(ROOM))
    before = MemoryUse.of()
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[::4096]) == 0
        during = MemoryUse.of()
    assert before is not None
    assert during is not None
    assert during.file_bytes > before.file_bytes + 0.9 * ROOM
    assert during.anonymous_bytes < before.anonymous_bytes + 0.1 * ROOM


@pytest.mark.process
def test_another_process() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert MemoryUse.of(other.pid) is not None
        other.communicate(b"\n")
    assert MemoryUse.of(other.pid) is None
    assert MemoryUse.of(os.getpid()) is not None


def test_timings_hold_peaks_where_they_are_watched() -> None:
    with MemoryWatch() as watch:
        timings = Timings(watch=watch)
        for action in (hold, lambda: None):
            with timings.measure("run", "step"):
                action()
        with timings.measure("run", "vae"):
            pass
    peaks = timings.peaks()
    assert list(peaks) == ["run step", "run vae"]
    assert peaks["run step"].anonymous_bytes > peaks["run vae"].anonymous_bytes + 0.9 * ROOM
    unwatched = Timings()
    with unwatched.measure("run", "step"):
        pass
    assert unwatched.peaks() == {}


def test_a_system_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryUse, "of", lambda process: None)
    with MemoryWatch() as watch:
        assert watch.peak() is None
        timings = Timings(watch=watch)
        with timings.measure("run", "step"):
            pass
    assert timings.peaks() == {}
