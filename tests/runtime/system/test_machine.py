"""Facts of the machine that only Linux reports, and their counterparts elsewhere."""

import sys
from pathlib import Path

import pytest

from qwen_image_engine.runtime.system import machine
from qwen_image_engine.runtime.system.machine import Machine, reachable_memory_bytes


@pytest.fixture
def no_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of proc(5) or of a control group, as on macOS and Windows."""
    monkeypatch.setattr(machine, "_proc", lambda file, key: None)
    monkeypatch.setattr(machine, "_number", lambda file: None)
    monkeypatch.setattr(machine, "_cgroup_anonymous_bytes", lambda: None)


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="compares psutil with Linux's own figures")
def test_memory_without_proc_is_that_of_psutil(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("psutil")
    monkeypatch.setattr(machine, "_number", lambda file: None)  # psutil knows no control groups
    told = Machine.here()
    with monkeypatch.context() as patch:
        patch.setattr(machine, "_proc", lambda file, key: None)
        found = Machine.here()
    assert found.memory_bytes == told.memory_bytes
    assert found.free_memory_bytes == pytest.approx(told.free_memory_bytes, rel=0.1)


@pytest.mark.usefixtures("no_proc")
def test_without_proc_and_psutil_facts_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    found = Machine.here()
    assert (found.memory_bytes, found.free_memory_bytes, found.cpu_flags) == (None, None, None)
    assert found.cores >= 1
    assert found.cpu
    assert reachable_memory_bytes() is None
