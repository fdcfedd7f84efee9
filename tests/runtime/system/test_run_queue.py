"""Time without a core, as the kernel counts it."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from qwen_image_engine.runtime.system.run_queue import longest_run_queue_wait, run_queue_wait_s


@pytest.mark.skipif(not Path("/proc/self/schedstat").is_file(), reason="only Linux tells")
def test_every_thread_is_read() -> None:
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    found = run_queue_wait_s()
    release.set()
    thread.join()
    assert {str(os.getpid()), str(thread.native_id)} <= found.keys()
    assert all(seconds >= 0 for seconds in found.values())
    assert all(later >= found[name] for name, later in run_queue_wait_s().items() if name in found)


@pytest.mark.process
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux binds processes to a core")
def test_two_that_share_a_core_wait_for_each_other() -> None:
    """The kernel's count against its own count of what ran, both of one process."""
    code = """
import os, sys, time
from qwen_image_engine.runtime.system.run_queue import longest_run_queue_wait, run_queue_wait_s
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
other = os.fork()
if not other:
    while True: pass
before, ran = run_queue_wait_s(), time.process_time()
while time.process_time() < ran + 0.2: pass
waited = longest_run_queue_wait(before, run_queue_wait_s())
os.kill(other, 9)
print(waited)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert float(found.stdout) > 0.05


def test_the_longest_wait_of_threads_that_come_and_go() -> None:
    assert longest_run_queue_wait({"1": 1.0, "2": 5.0}, {"1": 1.5, "3": 0.25}) == 0.5
    assert longest_run_queue_wait({}, {}) is None
