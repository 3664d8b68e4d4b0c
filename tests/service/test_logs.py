"""What a driver writes and what UDFs print on appliers is kept, bounded, and found again."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import geneva
from geneva.appliers.prints import RING_BYTES, Heard, Part, Prints
from geneva.engine.recorder import Recorder
from geneva.errors import NoSuchJobError
from geneva.model.types import ExecutorEvent, Printed, Progress
from geneva.service.logs import SEGMENT_BYTES, SEGMENTS, JobLog, Printer
from tests.service.conftest import Scene
from tests.support.backfills import until
from tests.support.nodes import in_child
from tests.support.services import Service
from tests.support.tables import make_table

# ------------------------------------------------------------------------------------------ files


def whole(log: JobLog, most_bytes: int) -> str:
    """Read a log from its beginning, part by part."""
    text, at = "", 0
    while (part := log.read(at, most_bytes)).text:
        text, at = text + part.text, part.end
    return text


def test_part_that_cuts_a_character(tmp_path: Path):
    log = JobLog(tmp_path, "driver")
    log.append("aä€😀" * 3)
    for most_bytes in range(4, 11):
        assert whole(log, most_bytes) == "aä€😀" * 3


def test_log_that_goes_on_in_another_file_keeps_its_offsets(tmp_path: Path):
    log = JobLog(tmp_path, "applier-0")
    line = "x" * 1023 + "\n"
    for _ in range(SEGMENT_BYTES // 1024 + 3):
        log.append(line)
    assert len(list(tmp_path.iterdir())) == 2
    assert whole(log, 10_000) == line * (SEGMENT_BYTES // 1024 + 3)
    assert log.read(SEGMENT_BYTES - 1024, 2048).text == line * 2


def test_log_is_bounded_and_says_what_was_removed(tmp_path: Path):
    log = JobLog(tmp_path, "applier-7")
    for k in range(12):
        log.append(f"{k}".rjust(SEGMENT_BYTES // 4 - 1) + "\n")
    held = sum(p.stat().st_size for p in tmp_path.iterdir())
    assert held <= SEGMENTS * SEGMENT_BYTES
    record, part = log.record(), log.read(0, 100)
    assert record.start == part.start > 0
    assert record.end == 12 * SEGMENT_BYTES // 4
    assert log.read(None, 3).text == "11\n"
    assert log.read(record.end + 99, 10).end == record.end
    with pytest.raises(NoSuchJobError, match="applier-8"):
        JobLog(tmp_path, "applier-8").read(None, 10)


def test_driver_log_goes_on_in_another_file_without_loss(tmp_path: Path):
    program = (
        "import sys; from pathlib import Path; from geneva.service.logs import JobLog\n"
        f"log = JobLog(Path({str(tmp_path)!r}), 'driver')\n"
        "for k in range(3):\n"
        "    print('part', k, flush=True); log.take_over()\n"
        "print('last', file=sys.stderr)"
    )
    log = JobLog(tmp_path, "driver")
    with log.open() as out:
        subprocess.run([sys.executable, "-c", program], stdout=out, stderr=out, check=True)
    starts = sorted(int(p.name.split(".")[1]) for p in tmp_path.iterdir())
    assert starts == [14, 21]
    assert whole(log, 1000) == "part 2\nlast\n"


def test_log_that_cannot_be_written_ends_nothing(tmp_path: Path):
    (tmp_path / "job").write_text("a file where a folder should be")
    Printer(tmp_path / "job")(Printed(0, "lost"))


def test_output_that_nobody_takes_holds_the_latest():
    output, heard = Prints(), Heard()
    for k in range(8):
        output.write(f"{k}" * (RING_BYTES // 4))
    latest = "".join(f"{k}" * (RING_BYTES // 4) for k in (4, 5, 6, 7))
    assert heard.add(output.take(0)) == f"[{RING_BYTES:,} bytes were not kept]\n{latest}"
    assert heard.add(output.take(heard.until)) == ""
    output.write("abc" + "x" * (RING_BYTES - 1) + "y")
    text = heard.add(output.take(heard.until))
    assert text == "[3 bytes were not kept]\n" + "x" * (RING_BYTES - 1) + "y"


def test_replies_that_are_lost_or_late():
    output, heard = Prints(), Heard()
    output.write("one ")
    output.take(0)  # lost
    output.write("two ")
    late = output.take(0)
    output.write("three ")
    assert heard.add(output.take(0)) == "one two three "
    assert heard.add(late) == ""
    output.write("four")
    assert output.take(heard.until) == Part(heard.until, b"four")
    assert heard.add(output.take(late.end)) == "four"


def test_what_nobody_heard_outlives_the_process(tmp_path: Path):
    output, heard, kept = Prints(), Heard(), tmp_path / "kept"
    kept.mkdir()
    output.keep_in(str(tmp_path / "another host" / "output"))
    output.write("before\n")
    output.keep_in(str(kept / "output"))
    heard.path = str(kept / "output")
    output.write("heard\n")
    assert heard.add(output.take(0)) == "before\nheard\n"
    output.write("in a reply\r")
    output.take(heard.until)
    output.write("last ")
    output.write("words \udcff\n")
    assert heard.rest() == "in a reply\rlast words ?\n"
    assert heard.rest() == ""
    assert heard.add(output.take(0)) == ""


def test_more_prints_at_once_than_are_held(tmp_path: Path):
    output, heard = Prints(), Heard()
    heard.path = str(tmp_path / "output")
    output.keep_in(heard.path)
    lines = [f"line {k} ä\n" for k in range(50_000)]
    for k in range(0, len(lines), 10_000):
        for line in lines[k : k + 10_000]:
            output.write(line)
        assert heard.add(output.take(heard.until)) == "".join(lines[k : k + 10_000])
    for line in ["x" * 99 + "\n"] * 50_000:
        output.write(line)
    assert sum(f.stat().st_size for f in tmp_path.iterdir()) < 3 * SEGMENT_BYTES
    note, _, text = heard.add(output.take(heard.until)).partition("\n")
    assert note.endswith("bytes were not kept]")
    assert int(note[1:].split()[0].replace(",", "")) + len(text) == 5_000_000
    assert len(text) >= SEGMENT_BYTES
    output.write("y" * 3 * SEGMENT_BYTES)
    assert heard.rest().endswith("\n" + "y" * SEGMENT_BYTES)


def test_full_disk_costs_no_more_than_last_words(tmp_path: Path):
    program = (
        "import resource, signal, sys; from geneva.appliers.prints import Heard, Prints\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "output, heard = Prints(), Heard()\n"
        "def limit(most): resource.setrlimit(resource.RLIMIT_FSIZE, (most, -1))\n"
        "output.write('one ')\n"
        "for most in (0, 6):\n"
        f"    limit(most); heard.path = {str(tmp_path / 'output')!r} + str(most)\n"
        "    output.keep_in(heard.path); output.write('two '); assert heard.rest() == ''\n"
        "assert heard.add(output.take(0)) == 'one two two '\n"
        "limit(1 << 20); output.keep_in(heard.path); limit(0); output.write('three')\n"
        "assert heard.rest() == 'three'\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_fork_of_an_applier_does_not_move_what_it_prints(tmp_path: Path):
    program = (
        "import os; from geneva.appliers.prints import Prints\n"
        "output = Prints()\n"
        f"output.keep_in({str(tmp_path / 'output')!r})\n"
        "output.write('one '); pid = os.fork()\n"
        "if not pid: output.write('of the fork '); os._exit(0)\n"
        "os.waitpid(pid, 0); output.write('two')\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    heard = Heard()
    heard.path = str(tmp_path / "output")
    assert heard.rest() == "one two"


# ---------------------------------------------------------------------------------------- service


STAGES = ("read", "udf", "checkpoint", "write", "commit")
_ON_RAY = pytest.param("ray", marks=[pytest.mark.ray, pytest.mark.services])


@pytest.fixture
def talkative(scene: Scene) -> Scene:
    """Columns a, whose UDF prints, and b; each call takes 10 ms."""

    @geneva.udf(num_cpus=0.5)
    def speak(x: int) -> int:
        import logging
        import sys
        import time

        time.sleep(0.01)
        print(f"row {x}")
        print(f"err {x}", file=sys.stderr)
        logging.warning("warn %s", x)
        return x

    @geneva.udf(num_cpus=0.5)
    def keep_still(x: int) -> int:
        import time

        time.sleep(0.01)
        return x

    scene.table.add_columns({"a": speak, "b": keep_still})
    return scene


@pytest.mark.parametrize("executor", ["local", _ON_RAY])
def test_what_a_job_leaves_behind(talkative: Scene, service: Service, executor: str):
    sizes = {"batch_size": 2, "checkpoint_size": 2}  # b follows what a reads, and checkpoints
    options = {"executor": executor, "concurrency": 2} | sizes
    run = service.submit(columns=["a", "b"], arguments=options, ray={"num_cpus": 1})
    service.until(run, "SUCCEEDED", timeout_s=120)
    job = f"/api/v1/jobs/{service.job(run)['id']}"
    names = [found["name"] for found in service.ask("GET", f"{job}/logs")]
    assert names[0] == "driver"
    texts = {n: service.ask("GET", f"{job}/logs/{n}")["text"] for n in names}
    assert "driver 1" in texts["driver"]
    assert_printed("".join(texts[n] for n in names[1:]))
    tasks = service.ask("GET", f"{job}/tasks")["items"]
    assert [t["column"] for t in tasks] == ["a"] * 4 + ["b"] * 4
    for task in tasks[:4]:
        log = texts[f"applier-{task['applier']}"]
        rows = range(10 * task["fragment_id"], 10 * task["fragment_id"] + 10)
        assert all(f"row {x}\n" in log for x in rows)
    assert all(t[f"seconds_{s}"] > 0 for t in tasks for s in STAGES if s != "read")
    assert all(t["seconds_udf"] >= 0.1 for t in tasks)
    for found in service.ask("GET", f"{job}/stages"):
        of_column = [t for t in tasks if t["column"] == found["column"]]
        assert found["fragments"] == {"COMMITTED": 4}
        totals = {s: sum(t[f"seconds_{s}"] for t in of_column) for s in STAGES}
        assert found["seconds"] == pytest.approx(totals)
    name = names[-1]
    plain = service.http.get(f"{job}/logs/{name}/text")
    assert plain.headers["content-type"] == "text/plain; charset=utf-8"
    assert plain.text == texts[name]
    folder = service.folder / "logs" / job.rpartition("/")[2]
    assert folder.is_dir()
    service.ask("DELETE", f"/api/v1/runs/{run}", 204)
    assert not folder.exists()


@pytest.mark.parametrize("executor", ["local", _ON_RAY])
def test_prints_of_a_udf_that_cannot_start(scene: Scene, service: Service, executor: str):
    @geneva.udf(num_cpus=0.5)
    class Model:
        def __init__(self) -> None:
            print("no such file: weights.bin")
            raise OSError("no weights")

        def __call__(self, x: int) -> int:
            return x

    scene.table.add_columns({"a": Model})
    options = {"executor": executor, "concurrency": 1}
    run = service.submit("a", arguments=options, ray={"num_cpus": 1})
    service.until(run, "FAILED", timeout_s=120)
    job = f"/api/v1/jobs/{service.job(run)['id']}"
    text = service.ask("GET", f"{job}/logs/applier-0")["text"]
    assert text.count("no such file: weights.bin") == 1


@pytest.mark.crash
@pytest.mark.ray
def test_prints_of_appliers_that_die_while_they_start(scene: Scene, service: Service):
    @geneva.udf(num_cpus=0.5)
    class Model:
        def __init__(self) -> None:
            import os

            print("no such device")
            os.abort()

        def __call__(self, x: int) -> int:
            return x

    scene.table.add_columns({"a": Model})
    options = {"executor": "ray", "concurrency": 1}
    run = service.submit("a", arguments=options, ray={"num_cpus": 1})
    service.until(run, "FAILED", timeout_s=120)
    job = f"/api/v1/jobs/{service.job(run)['id']}"
    text = service.ask("GET", f"{job}/logs/applier-0")["text"]
    assert text.count("begins with a\n") == text.count("no such device") == 4


@pytest.mark.crash
@pytest.mark.ray
def test_last_words_of_an_applier_that_dies(scene: Scene, service: Service, tmp_path: Path):
    died = tmp_path / "died"

    @geneva.udf(num_cpus=0.5)
    def dies(x: int) -> int:
        import os

        print(f"row {x}")
        if x == 25 and not died.exists():
            died.touch()
            print("these were its last words")
            os.abort()
        return x

    scene.table.add_columns({"a": dies})
    options = {"executor": "ray", "concurrency": 1, "batch_size": 1, "checkpoint_size": 1}
    run = service.submit("a", arguments=options, ray={"num_cpus": 1})
    service.until(run, "SUCCEEDED", timeout_s=120)
    job = f"/api/v1/jobs/{service.job(run)['id']}"
    text = service.ask("GET", f"{job}/logs/applier-0")["text"]
    assert text.count("these were its last words") == 1
    assert [text.count(f"row {x}\n") for x in range(40)] == [1] * 25 + [2] + [1] * 14


@pytest.mark.crash
@pytest.mark.ray
def test_death_while_prints_are_handed_over(scene: Scene, service: Service, tmp_path: Path):
    died = tmp_path / "died"

    @geneva.udf(num_cpus=0.5)
    def dies(x: int) -> int:
        import os
        import sys
        import time

        print(f"row {x}")
        if x == 25 and not died.exists():
            output = sys.stdout.default  # type: ignore[attr-defined]  # this applier's own
            take = output.take

            def take_and_die(*heard: int) -> object:
                take(*heard)
                died.touch()
                os.abort()

            output.take = take_and_die
            time.sleep(60)  # a poll comes before
        return x

    scene.table.add_columns({"a": dies})
    options = {"executor": "ray", "concurrency": 1, "batch_size": 1, "checkpoint_size": 1}
    run = service.submit("a", arguments=options, ray={"num_cpus": 1})
    service.until(run, "SUCCEEDED", timeout_s=120)
    job = f"/api/v1/jobs/{service.job(run)['id']}"
    text = service.ask("GET", f"{job}/logs/applier-0")["text"]
    rows = [int(x) for x in re.findall(r"^row (\d+)$", text, re.MULTILINE)]
    assert sorted(rows) == [*range(26), *range(25, 40)]


class Kept(Recorder):
    """Keeps what was printed."""

    text = ""

    def took(self, event: ExecutorEvent) -> None:
        if isinstance(event, Printed):
            self.text += event.text


def busy_while_an_applier_dies(path: Path) -> None:
    dying, busy, died = path / "dying", path / "busy", path / "died"

    @geneva.udf(num_cpus=1)
    def dies(x: int) -> int:
        def last_act() -> None:
            time.sleep(1)  # the reply arrives
            died.touch()
            os.abort()

        def take_and_die(heard: int) -> Part:
            dying.touch()
            until(busy.exists)
            threading.Thread(target=last_act).start()
            return take(heard)

        print(f"row {x}")
        if x == 25 and not died.exists():
            for open_file in Path("/proc/self/fd").iterdir():  # as if it were on another host
                with contextlib.suppress(OSError):
                    if (kept := open_file.readlink()).parent.name.startswith("geneva-"):
                        kept.unlink()
            output = sys.stdout.default  # type: ignore[attr-defined]  # this applier's own
            take, output.take = output.take, take_and_die
            time.sleep(60)  # a poll comes before
        return x

    def observe(_: Progress) -> None:
        if dying.exists() and not busy.exists():
            busy.touch()
            until(died.exists)
            time.sleep(2)  # the news of the death arrives

    ray = {"num_cpus": 1, "log_to_driver": False}
    table = geneva.connect(str(path), ray=ray).open_table("t")
    table.add_columns({"a": dies})
    options = {"executor": "ray", "concurrency": 1, "batch_size": 1, "checkpoint_size": 1}
    call = table.prepare_backfill("a", options, "job")
    call.control.recorder = kept = Kept()
    call.run(observe)
    rows = [int(x) for x in re.findall(r"^row (\d+)$", kept.text, re.MULTILINE)]
    assert sorted(rows) == [*range(26), *range(25, 40)], kept.text


@pytest.mark.crash
@pytest.mark.ray
def test_prints_that_arrive_with_the_death_of_a_far_applier(tmp_path: Path):
    make_table(tmp_path, rows=40, fragments=4)
    in_child(busy_while_an_applier_dies, tmp_path)


def assert_printed(text: str) -> None:
    """Each row printed each of its lines once."""
    for kind in ("row", "err"):
        found = re.findall(rf"^{kind} (\d+)$", text, re.MULTILINE)
        assert sorted(map(int, found)) == [*range(40)]
    assert len(re.findall(r"warn \d+$", text, re.MULTILINE)) == 40


def test_log_that_is_not_there(service: Service):
    run = service.submit()
    job = f"/api/v1/jobs/{service.job(run)['id']}"
    assert service.ask("GET", f"{job}/logs/applier-99", 404)["type"] == "NoSuchJobError"
    assert service.ask("GET", f"{job}/logs/..%2Fx", 404)
    assert service.ask("GET", f"{job}/logs/other", 422)["type"] == "InvalidRequest"
    assert service.ask("GET", "/api/v1/jobs/none/logs", 404)["type"] == "NoSuchJobError"
