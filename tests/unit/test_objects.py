"""The engine's own files: atomic, exclusive, listed and read back whole, on disk and by session."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lance.file import LanceFileSession

from geneva.storage import objects as module
from geneva.storage.objects import LocalObjects, Objects
from geneva.storage.remote import RemoteObjects


def remote(path: Path) -> RemoteObjects:
    """An object store's code path, on Lance's own client (which also speaks to directories)."""
    return RemoteObjects(LanceFileSession(str(path)))


@pytest.fixture(params=["local", "remote"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> Objects:
    root = tmp_path / "root"
    return LocalObjects(str(root)) if request.param == "local" else remote(root)


def test_file_is_read_back_as_written_and_replaced_whole(objects: Objects) -> None:
    objects.put("a/b.json", b"one")
    assert objects.get("a/b.json") == b"one"
    objects.put("a/b.json", b"")
    assert objects.get("a/b.json") == b""
    objects.put("a/b.json", bytes(range(256)) * 100)
    assert objects.get("a/b.json") == bytes(range(256)) * 100


def test_missing_file_is_named_as_missing(objects: Objects) -> None:
    with pytest.raises(FileNotFoundError):
        objects.get("nothing")
    with pytest.raises(FileNotFoundError):
        objects.read_log("nothing.log")
    objects.put("other", b"x")
    with pytest.raises(FileNotFoundError):
        objects.get("nothing")


def test_listing_shows_each_file_and_log_once_and_no_temporary(objects: Objects) -> None:
    objects.put("work/one/a", b"1")
    objects.put("work/b", b"2")
    objects.put("elsewhere/c", b"3")
    log = objects.create_log("work/one/x.log")
    for k in range(3):
        log.append(bytes([k]))
        log.sync()
    log.close()
    assert objects.list("work") == ["work/b", "work/one/a", "work/one/x.log"]
    assert objects.list("absent") == []


def test_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    objects = LocalObjects(str(tmp_path))
    objects.put("work/a", b"", durable=False)
    assert objects.list("nowhere") == []
    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(OSError, match="Input/output error"):
        objects.list("work")


def test_log_holds_all_appended_parts_in_order(objects: Objects) -> None:
    log = objects.create_log("work/x.log")
    log.append(b"ab", memoryview(b"cd"))
    log.sync()
    log.append(b"ef")
    log.sync()
    assert bytes(objects.read_log("work/x.log")) == b"abcdef"
    log.append(b"g")
    log.close()
    assert bytes(objects.read_log("work/x.log")) == b"abcdefg"


def test_deleted_file_and_log_leave_nothing_and_deleting_again_is_fine(objects: Objects) -> None:
    objects.put("work/a", b"1")
    objects.put("work/ab", b"2")
    log = objects.create_log("work/x.log")
    log.append(b"1")
    log.sync()
    log.append(b"2")
    log.close()
    for _ in range(2):
        objects.delete("work/a")
        objects.delete("work/x.log")
    assert objects.list("work") == ["work/ab"]
    assert objects.get("work/ab") == b"2"


def test_log_of_another_attempt_is_never_appended_to(tmp_path: Path) -> None:
    objects = LocalObjects(str(tmp_path))
    objects.create_log("x.log").append(b"mine")
    with pytest.raises(FileExistsError):
        objects.create_log("x.log")
    assert bytes(objects.read_log("x.log")) == b"mine"


def test_logs_closed_unsynced_are_synced_together_and_removed_ones_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(fd: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name)
        fsync(fd)

    stores = [LocalObjects(str(tmp_path / name)) for name in ("kept", "dropped")]
    monkeypatch.setattr(module, "_CLOSED", module._ClosedLogs())
    monkeypatch.setattr(module, "SYNC_INTERVAL_S", 60.0)

    def append_and_close(objects: LocalObjects, name: str) -> None:
        log = objects.create_log(f"work/{name}")
        log.append(b"1")
        if name == "last":
            monkeypatch.setattr(module, "SYNC_INTERVAL_S", 0.0)
        log.close()

    for objects, name in ((stores[0], "a"), (stores[0], "committed"), (stores[1], "b")):
        append_and_close(objects, name)
    monkeypatch.setattr(os, "fsync", noted)
    stores[0].delete("work/committed")
    shutil.rmtree(tmp_path / "dropped")
    append_and_close(stores[0], "last")
    assert synced == ["a", "last", "work"]


_KILLED = """
import os, signal, sys
from geneva.storage import objects as module
from geneva.storage.objects import LocalObjects
LocalObjects(sys.argv[1]).create_log("x.log").append(b"kept")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_local_append_survives_the_process_before_any_sync(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert bytes(LocalObjects(str(tmp_path)).read_log("x.log")) == b"kept"


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    objects = LocalObjects(str(tmp_path))
    bodies = [bytes([k]) * 200_000 for k in range(2)]
    objects.put("f", bodies[0])
    stop = threading.Event()

    def write() -> None:
        k = 0
        while not stop.is_set():
            k += 1
            objects.put("f", bodies[k % 2])

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(300):
            assert objects.get("f") in bodies
    finally:
        stop.set()
        writer.join()


def test_put_that_cannot_finish_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    objects = LocalObjects(str(tmp_path))
    objects.put("d/f", b"old")
    (tmp_path / "d" / "g").mkdir()
    with pytest.raises(OSError, match="g"):
        objects.put("d/g", b"a file cannot replace a directory")
    assert objects.get("d/f") == b"old"
    assert sorted(os.listdir(tmp_path / "d")) == ["f", "g"]


_names = st.sampled_from(["a", "b", "w/a", "w/b.log", "w/x/c"])


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["put", "delete"]), _names, st.binary(max_size=20))))
def test_both_stores_hold_what_a_dictionary_would(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, bytes]]
) -> None:
    root = tmp_path_factory.mktemp("objects")
    for objects in (LocalObjects(str(root / "l")), remote(root / "r")):
        expected: dict[str, bytes] = {}
        for verb, name, body in steps:
            if verb == "put":
                objects.put(name, body)
                expected[name] = body
            else:
                objects.delete(name)
                expected.pop(name, None)
        assert {n: objects.get(n) for n in expected} == expected
        assert objects.list("w") == sorted(n for n in expected if n.startswith("w/"))
