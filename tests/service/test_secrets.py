"""What a service was told in confidence reaches no UDF, and what it keeps only its own account."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

import geneva
from geneva.jobs.store.database import Database, with_password
from geneva.jobs.store.opening import open_store
from geneva.service.handover import for_drivers
from geneva.service.logs import JobLog
from tests.support.services import Service
from tests.support.tables import make_table

SECRETS = {
    "GENEVA_TOKEN": "operators-own-token",
    "GENEVA_VIEWER_TOKEN": "viewers-own-token",
    "PGPASSWORD": "password-of-the-database",
    "COPY_OF_A_TOKEN": "operators-own-token",
    "SOME_URL": "postgresql://u:password-of-the-database@h/d",
}


@geneva.udf(num_cpus=0.5, params={"into": ""})
def seen(x: int, into: str) -> int:
    """Write down all that a process can see of its own and its ancestors' beginnings."""
    found = {"environ": dict(os.environ)}
    pid = os.getpid()
    while pid > 1:
        for name in ("environ", "cmdline"):
            found[f"{pid} {name}"] = (
                Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace")
            )
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    with open(into, "a") as file:
        file.write(json.dumps(found) + "\n")
    return x


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_udf_sees_no_secret_of_the_service(tmp_path: Path, executor: str):
    table = make_table(tmp_path / "db", rows=2, fragments=1)
    table.add_columns({"y": seen.with_params({"into": str(tmp_path / "seen")})})
    env = SECRETS | {"FOR_UDFS": "stays"}
    service = Service(tmp_path / "state", tmp_path / "db", env=env).start()
    try:
        run = service.submit(arguments={"executor": executor, "concurrency": 1})
        service.until(run, "SUCCEEDED")
    finally:
        service.stop()
    shown = (tmp_path / "seen").read_text()
    assert [s for s in SECRETS.values() if s in shown] == []
    first = json.loads(shown.splitlines()[0])
    assert first["environ"]["FOR_UDFS"] == "stays"
    assert any("geneva.service.driver" in v for v in first.values())
    assert any("serve" in v for k, v in first.items() if k.endswith("cmdline"))


def test_password_in_the_command_line_is_overwritten_once_it_was_read():
    """The kernel shows the memory of a process to others; what children inherit goes too."""
    program = (
        "import os, sys, subprocess\n"
        "from geneva.service.handover import conceal\n"
        "conceal(['pass:w', ''])\n"
        "print(open('/proc/self/cmdline').read())\n"
        "print(open('/proc/self/environ').read())\n"
        "print(subprocess.check_output(['env'], text=True))\n"
        "print('argv', sys.argv[1], os.environ['PLAIN'])\n"
    )
    url = "postgresql://me:pass:w@host/db"
    env = os.environ | {"OTHER": url, "PGPASSWORD": "pass:w", "PLAIN": "a pass:w inside"}
    command = [sys.executable, "-c", program, url]
    shown = subprocess.check_output(command, text=True, env=env)
    assert shown.count(url) == 1  # what Python itself has taken before
    assert "me:******@host/db" in shown
    assert "PGPASSWORD" not in shown
    assert "a pass:w inside" in shown  # no URL's password, and no value of its own


def test_driver_is_given_all_of_the_environment_but_secrets():
    given = {"A": "x", "B": "tok", "C": "a:tok@b", "D": "tok-en", "GENEVA_TOKEN": "other"}
    assert for_drivers(given, ["tok", ""]) == {"A": "x", "D": "tok-en"}


@pytest.mark.parametrize(
    ("url", "asked", "full"),
    [
        ("postgresql://u@h/d", "p", "postgresql://u:p@h/d"),
        ("postgresql://u:own@h/d", "p", "postgresql://u:own@h/d"),
        (
            "postgresql://u@h/d?password=q&sslmode=require",
            "p",
            "postgresql://u:q@h/d?sslmode=require",
        ),
        ("postgresql://u@h/d", None, "postgresql://u@h/d"),
        ("sqlite:////a/b", "p", "sqlite:////a/b"),
    ],
)
def test_password_of_the_database_is_where_no_message_shows_it(
    url: str, asked: str | None, full: str
):
    assert with_password(url, asked) == full


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("open_umask")
def test_records_and_logs_are_their_owners_whatever_the_umask(tmp_path: Path):
    store = open_store(f"sqlite:///{tmp_path / 'new' / 'jobs.db'}")
    with store.database.write() as session:
        session.execute(text("UPDATE jobs SET priority = 1"))
        files = list((tmp_path / "new").iterdir())
    assert {p.name for p in files} >= {"jobs.db", "jobs.db-wal", "jobs.db-shm"}
    assert {mode(p) for p in files} == {0o600}
    assert mode(tmp_path / "new") == 0o700
    log = JobLog(tmp_path / "logs" / "job", "driver")
    log.append("x" * 600_000)  # fills a file, and begins another
    log.append("y")
    assert len(list(log.folder.iterdir())) == 2
    assert {mode(p) for p in log.folder.iterdir()} == {0o600}
    assert mode(log.folder) == 0o700


@pytest.mark.usefixtures("open_umask")
def test_what_an_earlier_version_left_open_is_tightened_at_the_start(tmp_path: Path):
    state = tmp_path / "state"
    old = state / "logs" / "job" / "driver.0.log"
    old.parent.mkdir(parents=True)
    old.touch()
    (state / "jobs.db").touch()
    make_table(tmp_path / "db", rows=2, fragments=1)
    service = Service(state, tmp_path / "db").start()
    try:
        found = [state, *(p for p in state.rglob("*") if p != service.log)]
        assert [p for p in found if mode(p) & 0o077] == []
        assert mode(tmp_path / "db") & 0o077  # tables stay as open as they are
    finally:
        service.stop()


@pytest.mark.usefixtures("open_umask")
def test_folder_of_others_stays_as_open_as_it_is(tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "theirs").touch()
    Database(f"sqlite:///{tmp_path / 'shared' / 'jobs.db'}").close()
    assert mode(tmp_path / "shared") == 0o777
    assert mode(tmp_path / "shared" / "theirs") == 0o666
    assert mode(tmp_path / "shared" / "jobs.db") == 0o600


def test_file_of_jobs_that_is_opened_again_keeps_the_locks_of_who_writes(tmp_path: Path):
    """POSIX takes all locks of a process on a file when it closes any descriptor of it."""
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    first = open_store(url)
    program = (
        "import sqlite3, sys\n"
        f"other = sqlite3.connect({str(tmp_path / 'jobs.db')!r}, timeout=0)\n"
        "other.execute('BEGIN EXCLUSIVE')\n"
    )
    with first.database.write() as session:
        session.execute(text("UPDATE jobs SET priority = 1"))
        Database(url).close()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "database is locked" in done.stderr
