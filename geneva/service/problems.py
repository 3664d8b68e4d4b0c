"""Errors as ``application/problem+json`` (RFC 9457), with the class of the exception as type."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.encoders import jsonable_encoder
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from geneva.errors import (
    GenevaError,
    JobStateError,
    NoSuchJobError,
    NotServedError,
    RequestError,
    ResourceError,
    RetryableError,
    TableError,
    WhereError,
)

_LOG = logging.getLogger("geneva.service")
MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """The fault of a request, and its remedy.

    ``span`` says which characters of a ``where`` are wrong, half-open.
    """

    type: str
    title: str
    status: int
    detail: str
    span: list[int] | None = Field(None, min_length=2, max_length=2)
    errors: list[Any] | None = None


STATUSES = {
    400: "The body is no JSON, or the URL holds a NUL.",
    401: "A token is missing or unknown.",
    403: "The token allows looking only, the service was not started for that database, or the "
    "request comes from another site.",
    404: "There is no such thing.",
    409: "The state of the job does not allow it.",
    413: "The body is too large.",
    414: "The URL is too long.",
    422: "The request is wrong.",
    429: "Too many requests, or streams of one client; Retry-After says how long to wait.",
    431: "The headers are too large.",
    500: "The service failed, or somebody must mend the cluster or the files.",
    503: "The database of jobs or the table's storage does not answer, or all streams are taken.",
}
"""What the status of an error means."""


def install(app: FastAPI) -> None:
    """Answer every error as a problem."""
    app.add_exception_handler(GenevaError, _geneva)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _unexpected)


def problem(
    status: int,
    name: str,
    detail: str,
    errors: list[Any] | None = None,
    headers: dict[str, str] | None = None,
    span: tuple[int, int] | None = None,
) -> JSONResponse:
    """Return a response that names the fault."""
    title = HTTPStatus(status).phrase
    content = Problem(
        type=name,
        title=title,
        status=status,
        detail=detail,
        span=None if span is None else list(span),
        errors=errors,
    )
    return JSONResponse(
        content.model_dump(exclude_none=True), status, headers=headers, media_type=MEDIA_TYPE
    )


def status_of(error: BaseException) -> int:
    """Return the HTTP status for the kind of an error."""
    match error:
        case NoSuchJobError() | TableError():
            return 404
        case NotServedError():
            return 403
        case JobStateError():
            return 409
        case RequestError() | ResourceError():
            return 422
        case RetryableError():
            return 503
        case _:
            return 500


def _geneva(_: Request, error: Exception) -> JSONResponse:
    span = error.span if isinstance(error, WhereError) else None
    return problem(status_of(error), type(error).__name__, str(error), span=span)


def _invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = [{k: e[k] for k in ("loc", "msg", "type")} for e in error.errors()]
    first = errors[0]
    where = ".".join(str(part) for part in first["loc"])
    return problem(422, "InvalidRequest", f"{where}: {first['msg']}", jsonable_encoder(errors))


def _http(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    name = HTTPStatus(error.status_code).phrase.title().replace(" ", "")
    headers = dict(error.headers or {})
    return problem(error.status_code, name, str(error.detail), headers=headers)


def _unexpected(request: Request, error: Exception) -> JSONResponse:
    _LOG.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return problem(500, "InternalError", "the service failed; its log says why")
