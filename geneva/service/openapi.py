"""The OpenAPI schema: one name and one sentence for each operation, errors as problems only."""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from geneva.service.problems import MEDIA_TYPE, STATUSES

TAGS = {
    "runs": "What was submitted at once: submit, look, steer, retry, forget.",
    "jobs": "One table x columns x filter of a run, and its fragments.",
    "logs": "What the driver of a job writes, and what its UDFs print on each applier.",
    "pools": "Slots that jobs share.",
    "tables": "Tables and their computed columns.",
    "failures": "Rows that UDFs failed on.",
    "health": "For those who watch the service.",
}
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_OPEN = ("/healthz", "/readyz")
_ALWAYS = (400, 401, 403, 414, 422, 429, 431, 500, 503)


def operation_id(route: APIRoute) -> str:
    """Return the name of an operation, such as ``post_runs_run_id_retry``."""
    words = re.findall(r"\w+", route.path.removeprefix("/api/v1"))
    return "_".join([min(route.methods or ()).lower(), *words])


def describe(app: FastAPI) -> None:
    """Let an application describe itself so."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            tags = [{"name": n, "description": d} for n, d in TAGS.items()]
            app.openapi_schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=tags,
            )
            _tidy(app.openapi_schema)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _tidy(schema: dict[str, Any]) -> None:
    for path, verbs in schema["paths"].items():
        for verb, operation in verbs.items():
            first, _, rest = operation.get("description", "").partition("\n")
            operation["summary"] = first.rstrip(".")
            operation["description"] = rest.strip() or first
            responses = operation["responses"]
            responses.pop("default", None)  # is there to bring in the model of problems
            for status in _statuses(path, verb, operation):
                problems = {MEDIA_TYPE: {"schema": _PROBLEM}}
                responses[str(status)] = {"description": STATUSES[status], "content": problems}
                if status == 429:
                    wait = {"description": "Seconds to wait.", "schema": {"type": "integer"}}
                    responses["429"]["headers"] = {"Retry-After": wait}
    models = schema["components"]["schemas"]
    for name in ("HTTPValidationError", "ValidationError"):
        models.pop(name, None)
    for model in models.values():
        _describe_fields(model)


def _describe_fields(model: dict[str, Any]) -> None:
    """Give the fields of a model their descriptions from its docstring."""
    text, _, attributes = model.get("description", "").partition("\n\nAttributes\n----------\n")
    if not attributes:
        return
    model["description"] = text
    for names, said in re.findall(r"^(\w.*)\n((?:(?: +.*)?(?:\n|$))+)", attributes, re.MULTILINE):
        for name in names.split(", "):
            if name in model["properties"]:
                model["properties"][name]["description"] = " ".join(said.split())


def _statuses(path: str, verb: str, operation: dict[str, Any]) -> list[int]:
    """Return the statuses of errors that an operation may answer with."""
    if path in _OPEN:
        return [400, 413, 414, 431, 500, 503]
    found = {*_ALWAYS, 413}
    if path.startswith("/api"):
        found.add(404)
    if verb in ("post", "delete", "patch"):
        found.add(409)
    return sorted(found)
