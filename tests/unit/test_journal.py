"""The checkpoint journal: what was appended is replayed, what was torn or flipped is not."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from geneva.column.checkpoint.journal import Journal, LogUses, find_logs, replay
from geneva.column.checkpoint.key import (
    log_folder,
    log_path,
    logs_by_key,
    shared_log_path,
    work_key,
)
from geneva.storage.objects import LocalObjects, Log

TYPES = (pa.int64(), pa.string())
Row = tuple[int, str | None]


@pytest.fixture
def objects(tmp_path: Path) -> LocalObjects:
    return LocalObjects(str(tmp_path / "objects"))


def append(journal: Journal, rows: list[int], errors: dict[int, str] | None = None) -> None:
    failed = errors or {}
    numbers = pa.array([None if r in failed else 10 * r for r in rows], pa.int64())
    texts = pa.array([None if r in failed else f"v{r}" for r in rows], pa.string())
    listed = [failed.get(r) for r in rows] if errors else None
    journal.append(np.array(rows, np.int64), [numbers, texts], listed)


def found(objects: LocalObjects, *paths: str, with_failed: bool = True) -> dict[int, Row]:
    earlier = replay(objects, paths, TYPES, with_failed=with_failed)
    numbers, texts = earlier.values(np.arange(len(earlier.rows)))
    values = zip(numbers.to_pylist(), texts.to_pylist(), strict=True)
    return dict(zip(earlier.rows.tolist(), values, strict=True))


def right(rows: list[int]) -> dict[int, Row]:
    return {r: (10 * r, f"v{r}") for r in rows}


FRAMES = [list(range(5)), [7, 9, 12], list(range(20, 24))]
EVERY_ROW = [row for rows in FRAMES for row in rows]


def written(objects: LocalObjects, path: str = "a.log") -> tuple[bytes, list[int]]:
    """Write three records and a finish frame; return the bytes and where each frame ends."""
    journal = Journal(objects, path, TYPES)
    ends = []
    for rows in FRAMES:
        append(journal, rows)
        ends.append(journal.size_bytes)
    journal.finish({"key": "", "file": "f.lance"})
    ends.append(journal.size_bytes)
    journal.close()
    return bytes(objects.read_log(path)), ends


def complete_frames(ends: list[int], size: int) -> list[int]:
    count = sum(end <= size for end in ends[:-1])
    return [r for rows in FRAMES[:count] for r in rows]


def test_torn_write_at_any_offset_loses_only_the_torn_record(
    objects: LocalObjects, tmp_path: Path
) -> None:
    content, ends = written(objects)
    torn = tmp_path / "objects" / "torn.log"
    for size in range(len(content) + 1):
        torn.write_bytes(content[:size])
        assert found(objects, "torn.log") == right(complete_frames(ends, size)), size
        finish = replay(objects, ["torn.log"], TYPES, with_failed=True).finish
        assert (finish is not None) == (size == len(content)), size


def test_zeroed_tail_after_a_power_failure_ends_the_journal(
    objects: LocalObjects, tmp_path: Path
) -> None:
    content, ends = written(objects)
    torn = tmp_path / "objects" / "torn.log"
    for size in range(0, len(content), 3):
        torn.write_bytes(content[:size] + bytes(len(content) - size))
        kept = found(objects, "torn.log")
        at_least = right(complete_frames(ends, size))
        # A frame may end in zeros of its own: then zeroing them changes nothing.
        assert at_least.items() <= kept.items() <= right(EVERY_ROW).items(), size


@pytest.mark.parametrize("bit", [0, 3, 7])
def test_flipped_bit_in_any_byte_never_yields_a_wrong_row(
    objects: LocalObjects, tmp_path: Path, bit: int
) -> None:
    content, ends = written(objects)
    flipped = tmp_path / "objects" / "flipped.log"
    everything = right(EVERY_ROW)
    for at in range(len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 1 << bit
        flipped.write_bytes(damaged)
        kept = found(objects, "flipped.log")
        before = right(complete_frames(ends, at))
        assert kept in (before, everything), (at, bit)


def test_rows_far_apart_come_back_at_their_own_numbers(objects: LocalObjects) -> None:
    journal = Journal(objects, "a.log", TYPES)
    rows = [0, 3, 2**20, 2**31 - 5]
    append(journal, rows)
    journal.close()
    assert found(objects, "a.log") == right(rows)


def test_two_attempts_at_the_same_rows_count_each_row_once(objects: LocalObjects) -> None:
    for path, rows in (("a.log", [0, 1, 2]), ("b.log", [2, 3, 4])):
        journal = Journal(objects, path, TYPES)
        append(journal, rows)
        journal.close()
    assert found(objects, "a.log", "b.log") == right([0, 1, 2, 3, 4])


def test_where_two_attempts_disagree_the_first_wins_for_the_whole_row(
    objects: LocalObjects,
) -> None:
    for path, number in (("a.log", 1), ("b.log", 2)):
        journal = Journal(objects, path, TYPES)
        journal.append(np.array([5]), [pa.array([number]), pa.array([f"from {path}"])], None)
        journal.close()
    assert found(objects, "a.log", "b.log") == {5: (1, "from a.log")}
    assert found(objects, "b.log", "a.log") == {5: (2, "from b.log")}


def test_batches_out_of_order_replay_in_row_order(objects: LocalObjects) -> None:
    journal = Journal(objects, "a.log", TYPES)
    for rows in ([8, 9], [0, 1], [4, 6]):
        append(journal, rows)
    journal.close()
    earlier = replay(objects, ["a.log"], TYPES, with_failed=True)
    assert earlier.rows.tolist() == [0, 1, 4, 6, 8, 9]
    assert found(objects, "a.log") == right([0, 1, 4, 6, 8, 9])


def test_failed_row_is_done_only_for_those_who_accept_failures(objects: LocalObjects) -> None:
    journal = Journal(objects, "a.log", TYPES)
    append(journal, [0, 1, 2, 3], {2: "boom"})
    journal.close()
    accepted = replay(objects, ["a.log"], TYPES, with_failed=True)
    assert accepted.rows.tolist() == [0, 1, 2, 3]
    assert accepted.errors == {2: "boom"}
    refused = replay(objects, ["a.log"], TYPES, with_failed=False)
    assert refused.rows.tolist() == [0, 1, 3]
    assert not refused.errors
    assert found(objects, "a.log", with_failed=False) == right([0, 1, 3])


@pytest.mark.parametrize("order", [("a.log", "b.log"), ("b.log", "a.log")])
@pytest.mark.parametrize("with_failed", [True, False])
def test_value_of_a_second_attempt_is_not_hidden_by_the_failure_of_the_first(
    objects: LocalObjects, order: tuple[str, str], with_failed: bool
) -> None:
    for path, errors in (("a.log", {1: "boom"}), ("b.log", None)):
        journal = Journal(objects, path, TYPES)
        append(journal, [0, 1, 2], errors)
        journal.close()
    assert found(objects, *order, with_failed=with_failed) == right([0, 1, 2])


def test_error_texts_stay_with_their_rows_when_attempts_interleave(objects: LocalObjects) -> None:
    journal = Journal(objects, "a.log", TYPES)
    append(journal, [10, 12], {12: "twelve"})
    append(journal, [3, 5], {3: "three"})
    journal.close()
    earlier = replay(objects, ["a.log"], TYPES, with_failed=True)
    assert {int(earlier.rows[k]): e for k, e in earlier.errors.items()} == {
        3: "three",
        12: "twelve",
    }


def test_finish_frame_is_found_with_the_records_before_it(objects: LocalObjects) -> None:
    written(objects)
    earlier = replay(objects, ["a.log"], TYPES, with_failed=True)
    assert earlier.finish == {"key": "", "file": "f.lance"}
    assert found(objects, "a.log") == right(EVERY_ROW)


def test_log_that_was_removed_meanwhile_is_no_error(objects: LocalObjects) -> None:
    written(objects)
    assert found(objects, "gone.log", "a.log") == right(EVERY_ROW)


def test_journal_without_a_record_leaves_no_file(objects: LocalObjects) -> None:
    journal = Journal(objects, "work/a.log", TYPES)
    assert not journal.created
    journal.sync()
    journal.close()
    assert objects.list("work") == []
    assert len(replay(objects, [], TYPES, with_failed=True).rows) == 0


def test_second_attempt_never_writes_to_the_log_of_the_first(objects: LocalObjects) -> None:
    written(objects)
    journal = Journal(objects, "a.log", TYPES)
    with pytest.raises(FileExistsError):
        append(journal, [100])
    assert 100 not in found(objects, "a.log")


def test_dictionary_and_nested_types_replay_as_they_were(objects: LocalObjects) -> None:
    nested = pa.struct([("a", pa.list_(pa.int32())), ("b", pa.map_(pa.string(), pa.float64()))])
    types = (pa.dictionary(pa.int32(), pa.string()), nested, pa.list_(pa.float32(), 2))
    values = [
        pa.array(["x", None]),
        pa.array([{"a": [1, None], "b": [("k", 1.5)]}, None], nested),
        pa.array([[1.0, 2.0], [3.0, 4.0]], types[2]),
    ]
    journal = Journal(objects, "a.log", types)
    journal.append(np.array([3, 4]), values, None)
    journal.close()
    earlier = replay(objects, ["a.log"], types, with_failed=True)
    back = earlier.values(np.array([1, 0]))
    assert [b.to_pylist() for b in back] == [v.to_pylist()[::-1] for v in values]


def test_sliced_values_are_recorded_without_their_neighbours(objects: LocalObjects) -> None:
    journal = Journal(objects, "a.log", (pa.string(),))
    journal.append(np.array([0, 1]), [pa.array(["a", "b", "c", "d"]).slice(1, 2)], None)
    journal.close()
    earlier = replay(objects, ["a.log"], (pa.string(),), with_failed=True)
    assert earlier.values(np.array([0, 1]))[0].to_pylist() == ["b", "c"]


def test_threads_that_append_at_once_do_not_interleave_frames(objects: LocalObjects) -> None:
    journal = Journal(objects, "a.log", TYPES)
    blocks = [list(range(k * 10, k * 10 + 10)) for k in range(40)]

    def work(mine: list[list[int]]) -> None:
        for rows in mine:
            append(journal, rows)

    threads = [threading.Thread(target=work, args=(blocks[k::4],)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    journal.close()
    assert found(objects, "a.log") == right(list(range(400)))


_FULL_DISK = """
import resource, signal, sys
import numpy as np, pyarrow as pa
from geneva.column.checkpoint.journal import Journal
from geneva.storage.objects import LocalObjects, Log
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))
journal = Journal(LocalObjects(sys.argv[1]), "a.log", (pa.int64(),))
for k in range(100):
    try:
        journal.append(np.array([k]), [pa.array([10 * k])], None)
    except OSError:
        print(k)
        break
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))  # somebody made room
journal.append(np.array([k]), [pa.array([10 * k])], None)
"""


def test_full_disk_is_an_error_and_hides_no_record_before_or_after_it(tmp_path: Path) -> None:
    root = tmp_path / "objects"
    done = subprocess.run(
        [sys.executable, "-c", _FULL_DISK, str(root)], capture_output=True, text=True, check=True
    )
    count = int(done.stdout)
    assert count > 3
    earlier = replay(LocalObjects(str(root)), ["a.log"], (pa.int64(),), with_failed=True)
    assert earlier.rows.tolist() == list(range(count + 1))
    assert earlier.values(earlier.rows)[0].to_pylist() == [10 * k for k in range(count + 1)]


def test_record_is_in_the_file_the_moment_append_returns(objects: LocalObjects) -> None:
    journal = Journal(objects, "a.log", TYPES)
    append(journal, [0, 1])
    assert found(objects, "a.log") == right([0, 1])  # neither synced nor closed
    append(journal, [2])
    assert found(objects, "a.log") == right([0, 1, 2])
    journal.close()


# --- finding checkpoints ------------------------------------------------------------------


def test_any_difference_in_what_makes_the_work_gives_another_key() -> None:
    base = ("inc", "digest", "", 3, 100, ((1, "f"),), "", False)
    keys = {work_key(*base)}
    for k, other in enumerate(("inc2", "digest2", "w", 4, 101, ((1, "g"),), "token", True)):
        keys.add(work_key(*base[:k], other, *base[k + 1 :]))
    assert len(keys) == len(base) + 1
    assert work_key("a", "b") != work_key("ab", "")
    assert work_key(1) != work_key("1")


def test_logs_are_grouped_by_the_work_they_belong_to() -> None:
    paths = [log_path("inc", key, attempt) for key in ("k1", "k2") for attempt in ("u2", "u1")]
    assert all(p.startswith(log_folder("inc") + "/") for p in paths)
    assert logs_by_key(paths) == {
        "k1": ("work/inc/k1.u1.log", "work/inc/k1.u2.log"),
        "k2": ("work/inc/k2.u1.log", "work/inc/k2.u2.log"),
    }


@pytest.mark.parametrize("fields", [1, 700], ids=["narrow", "more parts than one write takes"])
def test_values_lie_where_they_are_when_they_are_written(
    objects: LocalObjects, fields: int
) -> None:
    kind = pa.struct([pa.field(f"f{k}", pa.binary()) for k in range(fields)])
    rows = [{f"f{k}": bytes([row, k % 256]) * 50 for k in range(fields)} for row in range(6)]
    values = pa.array(rows, kind)
    journal = Journal(objects, log_path("column", "key", "one"), (kind,))
    journal.append(np.arange(2, 5), [values.slice(2, 3)], None)
    journal.append(np.arange(0, 2), [values.slice(0, 2)], None)
    journal.append(np.arange(5, 6), [values.slice(5)], [None])
    journal.close()
    earlier = replay(objects, [journal.path], (kind,), with_failed=True)
    assert earlier.values(np.arange(6))[0].to_pylist() == rows


def test_copy_of_large_values_in_memory(objects: LocalObjects) -> None:
    values = pa.array([b"x" * 20_000_000], pa.large_binary())
    journal = Journal(objects, log_path("column", "key", "one"), (values.type,))
    before = pa.total_allocated_bytes()
    most = []
    create = objects.create_log

    class Watched:
        def __init__(self, log: Log) -> None:
            self._log = log

        def append(self, *parts: bytes | memoryview) -> None:
            most.append(pa.total_allocated_bytes() - before)
            self._log.append(*parts)

        def close(self) -> None:
            self._log.close()

    objects.create_log = lambda path: Watched(create(path))  # type: ignore[method-assign]
    journal.append(np.arange(1), [values], None)
    journal.close()
    assert max(most) < 1_000_000


def test_log_that_several_share_is_found_by_each_and_tells_each_its_own(
    objects: LocalObjects,
) -> None:
    shared, own = shared_log_path("inc", "u9"), log_path("inc", "k2", "u1")
    journal = Journal(objects, shared, TYPES)
    for key in ("k1", "k2"):
        journal.finish({"key": key, "file": f"{key}.lance"})
    journal.close()
    append(Journal(objects, own, TYPES), [0, 1])
    logs = find_logs(objects, "inc")
    assert logs == {"k1": (shared,), "k2": (own, shared)}
    for key, rows in (("k1", 0), ("k2", 2)):
        earlier = replay(objects, logs[key], TYPES, with_failed=True, key=key)
        assert earlier.finish == {"key": key, "file": f"{key}.lance"}
        assert len(earlier.rows) == rows
    assert replay(objects, [shared], TYPES, with_failed=True, key="k3").finish is None


def test_shared_log_stays_until_nobody_needs_it(objects: LocalObjects) -> None:
    for path in ("shared.log", "own.log"):
        objects.put(path, b"x")
    uses = LogUses(objects)
    uses.note(1, ["shared.log", "own.log"])
    uses.note(2, ["shared.log"])
    uses.release((1, ["shared.log", "own.log"]))
    assert objects.list("") == ["shared.log"]
    uses.release((1, ["shared.log"]))  # again: it is no longer its own
    assert objects.list("") == ["shared.log"]
    uses.release((2, ["shared.log"]))
    assert objects.list("") == []


def test_frame_of_before_the_first_release_that_names_no_work_finishes_none(
    objects: LocalObjects,
) -> None:
    journal = Journal(objects, "a.log", TYPES)
    journal.finish({"file": "f.lance"})
    journal.close()
    assert replay(objects, ["a.log"], TYPES, with_failed=True, key="k1").finish is None
    assert replay(objects, ["a.log"], TYPES, with_failed=True).finish is None
