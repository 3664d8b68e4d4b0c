"""The REST interface against its own schema: no 5xx, and every answer is one that is described."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode, checks
from starlette.testclient import TestClient

from geneva.engine.process import this_process
from geneva.jobs.store.leases import Leases
from geneva.jobs.store.news import News, report
from geneva.jobs.store.queue import claim
from geneva.jobs.store.store import Store
from geneva.model.types import JobState, Progress
from geneva.service.app import create_app
from geneva.service.logs import JobLog
from geneva.service.service_settings import Settings
from tests.service.conftest import Scene

pytestmark = pytest.mark.services

TOKEN = {"Authorization": "Bearer op"}
EXAMPLES = int(os.environ.get("GENEVA_FUZZ", "3"))  # of each operation
CHECKS = [
    checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


@pytest.fixture
def app(jobs: Store, scene: Scene, tmp_path: Path) -> FastAPI:
    """A service with runs in several states, a failure, and a log."""
    chosen = Settings(
        jobs.database.url, tmp_path / "s", str(scene.path), operator_token="op", requests_per_s=0
    )
    made = create_app(chosen, jobs)
    http = TestClient(made, headers=TOKEN)
    body = {"table": "t", "columns": ["y"], "arguments": {"executor": "local"}}
    runs = [http.post("/api/v1/runs", json=body).json() for _ in range(3)]
    [claimed] = claim(jobs.database, this_process())
    failure = {
        "job_id": claimed.job_id,
        "column": "y",
        "fragment_id": 0,
        "row": 1,
        "row_id": "1",
        "error": "ValueError",
        "message": "no",
        "traceback": "",
        "input": "x=1",
        "attempts": 1,
    }
    report(jobs.database, claimed, News(failures=[failure]))
    progress = Progress(claimed.job_id, ("y",), JobState.RUNNING, rows_computed=1)
    Leases(jobs.database).finish(claimed, progress, JobState.PARTIAL)
    JobLog(chosen.logs / claimed.job_id, "driver").append("said\n")
    made.state.known = {
        "run_id": [r["id"] for r in runs],
        "job_id": [j["id"] for r in runs for j in r["jobs"]],
        "name": ["driver", "applier-0", "default", "t"],
    }
    return made


def operations(app: FastAPI) -> list[Any]:
    """Return all operations, those that take away what others need at the end."""
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    found = [operation.ok() for operation in schema.get_all_operations()]
    found = [
        o for o in found if o.path != "/readyz"
    ]  # 503, as no scheduler looks at the queue here
    return sorted(found, key=lambda o: o.method == "delete")


def known_to(app: FastAPI, path: str) -> dict[str, list[str]]:
    """Return ids that exist, as a request that names nothing says little."""
    known: dict[str, list[str]] = app.state.known
    if path.endswith("/stream"):  # of a live run it does not end
        return {"run_id": known["run_id"][:1]}
    return known


def test_no_request_makes_the_service_fail(app: FastAPI):
    http = TestClient(app, headers=TOKEN, raise_server_exceptions=False)
    errors: list[Exception] = []
    for operation in operations(app):
        try:
            fuzz(operation, http, known_to(app, operation.path))
        except Exception as error:
            error.add_note(f"of {operation.method} {operation.path}")
            errors.append(error)
    if errors:
        raise ExceptionGroup("answers that the schema does not describe", errors)


def fuzz(operation: Any, http: TestClient, known: dict[str, list[str]]) -> None:
    right = operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
    wrong = operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(case=right | wrong, data=st.data())
    def one(case: Any, data: st.DataObject) -> None:
        for name in set(case.path_parameters or {}) & set(known):
            if data.draw(st.booleans()) or operation.path.endswith("/stream"):
                case.path_parameters[name] = data.draw(st.sampled_from(known[name]))
        case.validate_response(case.call(session=http), checks=CHECKS)

    one()
