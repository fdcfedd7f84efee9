import os
from pathlib import Path
from typing import BinaryIO

import pytest

from qwen_image_engine.engines.core.files import (
    is_stream,
    leads_out,
    read_regular,
    regular_size,
    whole_file,
    whole_folder,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fail(file: BinaryIO, failure: type[BaseException]) -> None:
    file.write(b"half")
    raise failure


@pytest.mark.parametrize("temporary", [None, ".out.tmp"])
def test_a_file_appears_at_the_end_of_the_block(tmp_path: Path, temporary: str | None) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with whole_file(path, temporary=tmp_path / temporary if temporary else None, durable=True) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
        assert len(names(tmp_path)) == 2
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"old")
    with pytest.raises(failure), whole_file(path) as file:
        fail(file, failure)
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["out"]


def test_a_file_that_a_killed_process_left_under_the_fixed_name_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".out.tmp").write_bytes(b"a longer half")
    with whole_file(tmp_path / "out", temporary=tmp_path / ".out.tmp") as file:
        file.write(b"new")
    assert (tmp_path / "out").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_two_writers_under_random_names_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with whole_file(path) as first:
        with whole_file(path) as second:
            second.write(b"second")
        first.write(b"first")
        assert path.read_bytes() == b"second"
    assert path.read_bytes() == b"first"
    assert names(tmp_path) == ["out"]


def test_contents_are_on_the_disk_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(f"fsync of {os.fstat(descriptor).st_size}"))
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (events.append("rename"), replace(self, to))[1])
    with whole_file(tmp_path / "out", durable=True) as file:
        file.write(b"new")
    assert events == ["fsync of 3", "rename"]


def test_a_file_that_cannot_be_renamed_is_removed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError), whole_file(tmp_path / "out") as file:
        file.write(b"new")
    assert names(tmp_path) == ["out"]
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "absent" / "out"):
        pytest.fail("the block ran")


@pytest.mark.parametrize("exists", [True, False])
def test_a_symlink_is_written_through(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "here").mkdir()
    real, link, chain = tmp_path / "disk" / "real", tmp_path / "here" / "link", tmp_path / "here" / "chain"
    link.symlink_to("../disk/real")
    chain.symlink_to("link")
    if exists:
        real.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), whole_file(chain) as file:
        fail(file, KeyboardInterrupt)
    assert real.exists() == exists
    with whole_file(chain, durable=True) as file:
        file.write(b"new")
        assert names(tmp_path / "here") == ["chain", "link"]
    assert real.read_bytes() == b"new"
    assert link.is_symlink()
    assert chain.is_symlink()
    assert names(tmp_path / "disk") == ["real"]


def test_a_symlink_in_a_folder_of_the_package_is_replaced(tmp_path: Path) -> None:
    """A bundle in the Hub's cache is made of symlinks to files that are named by their contents."""
    (tmp_path / "blob").write_bytes(b"old")
    (tmp_path / "out").symlink_to("blob")
    with whole_file(tmp_path / "out", temporary=tmp_path / ".out.tmp") as file:
        file.write(b"new")
    assert (tmp_path / "blob").read_bytes() == b"old"
    assert (tmp_path / "out").read_bytes() == b"new"


@pytest.mark.parametrize("planted", ["link", "pipe"])
def test_nothing_goes_where_a_folder_from_others_leads(tmp_path: Path, planted: str) -> None:
    """A link or a pipe has the name of the file, or of the temporary one, which is known before."""
    (tmp_path / "other").write_bytes(b"other")
    for name in ("out", ".out.tmp"):
        if planted == "link":
            (tmp_path / name).symlink_to("other")
        elif hasattr(os, "mkfifo"):
            os.mkfifo(tmp_path / name)
    with whole_file(tmp_path / "out", temporary=tmp_path / ".out.tmp") as file:
        file.write(b"new")
    assert names(tmp_path) == ["other", "out"]
    assert (tmp_path / "other").read_bytes() == b"other"
    assert read_regular(tmp_path / "out", 3) == b"new"
    assert not (tmp_path / "out").is_symlink()


def test_a_symlink_that_leads_to_itself_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("out")
    with pytest.raises(OSError, match="symbolic links"), whole_file(tmp_path / "out"):
        pytest.fail("the block ran")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("durable", [True, False])
def test_a_pipe_is_written_to(tmp_path: Path, durable: bool) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
        try:
            with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / name) as file:
                fail(file, KeyboardInterrupt)
            with whole_file(tmp_path / name, durable=durable) as file:
                file.write(b"new")
            assert os.read(reader, 100) == b"new"
        finally:
            os.close(reader)
    assert names(tmp_path) == ["link", "pipe"]
    assert is_stream(tmp_path / "pipe")


def test_a_device_is_written_to() -> None:
    with whole_file(Path(os.devnull)) as file:
        file.write(b"new")
    assert is_stream(Path(os.devnull))


def test_a_folder_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()  # an empty one may be there
    with whole_folder(folder) as written:
        (written / "page").write_bytes(b"new")
        assert names(folder) == []
    assert (folder / "page").read_bytes() == b"new"
    assert names(tmp_path) == ["out"]


def test_an_exception_leaves_no_folder(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        whole_folder(tmp_path / "out") as written,
        (written / "page").open("wb") as page,
    ):
        fail(page, KeyboardInterrupt)
    assert names(tmp_path) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "other").touch()
    with pytest.raises(OSError, match="not empty"), whole_folder(tmp_path / "out") as written:
        (written / "page").write_bytes(b"new")
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["pipe", "zero", "folder", "a\0b", "half \ud800", "large", "absent"])
def test_only_regular_files_within_a_bound_are_read(tmp_path: Path, name: str) -> None:
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    (tmp_path / "folder").mkdir()
    (tmp_path / "large").write_bytes(b"12345")
    with pytest.raises(OSError, match=r"pipe or a device|irectory|denied|no file can have|expected at most 4|No such"):
        read_regular(tmp_path / name, 4)


def test_regular_files_are_read_through_links(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 4) == b"1234"
    assert regular_size(tmp_path / "link") == 4


def test_links_that_lead_out_of_a_folder(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "repository" / "snapshots" / "abc", tmp_path / "repository" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name, target in {"blob": "../../blobs/01", "beside": "../../refs", "out": "/etc/passwd", "in": "blob"}.items():
        (snapshot / name).symlink_to(target)
    assert [leads_out(snapshot / name, snapshot) for name in ("blob", "beside", "out", "in", "no link")] == [
        False,
        True,
        True,
        False,
        False,
    ]
    (blobs / "02").symlink_to("/etc/passwd")
    (snapshot / "twice").symlink_to("../../blobs/02")
    assert leads_out(snapshot / "twice", snapshot)
