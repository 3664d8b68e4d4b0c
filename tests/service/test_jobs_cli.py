"""`geneva runs ...` against a service that runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from geneva.cli.commands import app
from geneva.jobs.store.client import Client
from geneva.jobs.store.opening import needed
from tests.service.conftest import Scene
from tests.service.test_deaths import SLOWLY, assert_done_once, until_row_25
from tests.support.backfills import until
from tests.support.services import Service, is_running


def call(service: Service, *words: str, code: int = 0, as_json: bool = True) -> Any:
    url = ["--url", str(service.http.base_url)]
    done = CliRunner().invoke(app, ["runs", *words, *url, *(["--json"] if as_json else [])])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout) if as_json else done.stdout


def test_verbs_of_the_shell_do_what_they_say(scene: Scene, service: Service):
    chosen = SLOWLY | {"on_error": "null"}
    options = [f"--{k.replace('_', '-')}={v}" for k, v in chosen.items()]
    db = ["--db", str(scene.path)]
    plan = call(service, "plan", "t", "y", "--where", "x < 10", *db)
    assert len(plan["fragments"]) == 4
    run = call(service, "submit", "t", "y", "--name", "shell", *db, *options)["id"]
    until_row_25(scene)
    driver = service.driver(run)
    call(service, "pause", run)
    until(lambda: service.run(run)["state"] == "PAUSING")
    scene.gate.open()
    service.until(run, "PAUSED")
    assert not is_running(driver)
    assert [r["id"] for r in call(service, "ls", "--state", "paused", "--table", "t")["runs"]] == [
        run
    ]
    call(service, "resume", run)
    watched = call(service, "watch", run)
    assert (watched["state"], watched["name"]) == ("SUCCEEDED", "shell")
    assert_done_once(scene)
    assert "SUCCEEDED: 40 of 40 rows, 4 of 4 fragments visible" in call(
        service, "show", run, as_json=False
    )
    [stages] = call(service, "show", run)["stages"].values()
    assert stages[0]["fragments"] == {"COMMITTED": 4}
    assert "udf 0." in call(service, "show", run, as_json=False)
    logs = call(service, "logs", run)
    assert [found["name"] for found in logs["logs"]] == ["driver"]
    assert f"job {logs['job']}, driver 2" in logs["text"]
    followed = call(service, "logs", run, "--follow", as_json=False)
    assert followed == call(service, "logs", run, as_json=False)
    call(service, "logs", run, "--applier", "0", code=2)
    assert call(service, "failures", run) == {"items": [], "rows": 0, "complete": True}
    assert call(service, "failures", run, "--rows") == {"failures": []}
    call(service, "failures", "none", code=2)
    call(service, "cancel", run, code=2)
    call(service, "retry", run, code=2)
    call(service, "show", "none", code=2)
    call(service, "delete", run)
    call(service, "show", run, code=2)


def test_service_that_is_not_there():
    done = CliRunner().invoke(app, ["runs", "ls", "--url", "http://127.0.0.1:1"])
    assert done.exit_code == 3
    assert "is `geneva serve` running" in done.output


def test_typing_errors_are_answered_with_what_was_meant(service: Service, scene: Scene):
    for words, said in (
        (["shwo", "x"], "'show'"),
        (["ls", "--state", "RUNING"], "Did you mean 'RUNNING'?"),
        (["ls", "--url", "127.0.0.1:8265"], "no URL of a service"),
        (["submit", "t", "y", "--concurency=2", "--db", str(scene.path)], "--concurrency"),
        (["submit", "tt", "y", "--db", str(scene.path)], "tables: t"),
    ):
        url = [] if "--url" in words else ["--url", str(service.http.base_url)]
        done = CliRunner().invoke(app, ["runs", *words, *(url if words[0] != "shwo" else [])])
        assert (done.exit_code, said in done.output) == (2, True), done.output
    run = service.submit()
    job = service.job(run)["id"]
    assert f"job of run {run}" in call(service, "show", job, code=2)["message"]


def test_client_that_sends_too_many_waits(scene: Scene, tmp_path: Path):
    limited = Service(tmp_path / "state", scene.path, "--rate-limit", "2", "--no-schedule").start()
    try:
        client = Client(str(limited.http.base_url))
        assert [client.pools() != [] for _ in range(6)] == [True] * 6
    finally:
        limited.stop()


def test_database_of_jobs_is_upgraded(tmp_path: Path):
    words = ["db", "upgrade", "--jobs", f"sqlite:///{tmp_path / 'jobs.db'}", "--json"]
    for _ in range(2):
        done = CliRunner().invoke(app, words)
        assert json.loads(done.stdout) == {"version": needed()}
