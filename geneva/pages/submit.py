"""The form for a backfill, with a plan that follows its fields."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, assert_never
from uuid import uuid4

from fastapi import Query, Request, Response
from fastapi.responses import RedirectResponse

from geneva.errors import GenevaError, RequestError, SettingError, WhereError
from geneva.jobs.records import DEFAULT_POOL, Submission
from geneva.model.arguments import ARGUMENTS, Argument, Doors, ValueKind, arguments_of
from geneva.pages.render import render
from geneva.pages.routes import Form, Operator, checked, pages
from geneva.pages.tables_page import Db
from geneva.service import admission
from geneva.service.catalog import TableFacts
from geneva.service.forecast import Forecast, forecast
from geneva.service.schemas import NewRun
from geneva.service.state import Catalog, Places

router = pages()

_COLUMN = "column:"  # of the fields that choose columns
_PLAN_S = 1.5  # how long a filter is evaluated for a plan that follows what is typed
_LABELS: Mapping[str, str] = {
    "max_failures": "At most so many failures",
    "concurrency": "Appliers",
    "num_frags": "Fragments in this run",
    "pool": "Pool",
    "priority": "Priority",
    "name": "Name",
    "intra_applier_concurrency": "Calls at once",
    "batch_size": "Rows per call",
    "commit_granularity": "Fragments per commit",
    "timeout": "Seconds at most",
    "params": "Parameters of the UDF",
}
_REDO: Mapping[str, Mapping[str, bool]] = {
    "": {},
    "failed": {"retry_failed": True},
    "all": {"force": True},
}


@dataclass(frozen=True, slots=True)
class Wrong:
    """Why a request cannot be accepted, by which field; of a filter also where."""

    text: str
    where: bool = False
    span: tuple[int, int] | None = None
    field: str = ""

    @classmethod
    def of(cls, error: GenevaError) -> Wrong:
        """Return the message of an error, with the name that a field has on the page."""
        span = error.span if isinstance(error, WhereError) else None
        text = str(error)
        field = re.split(r"\W", text, maxsplit=1)[0]
        if field in _LABELS:
            return cls(f"{_LABELS[field]}: {text}", field=field)
        return cls(text, isinstance(error, WhereError), span)


@router.get("/submit")
def form(
    request: Request,
    places: Places,
    table: Annotated[str, Query(max_length=500)] = "",
    column: Annotated[list[str] | None, Query()] = None,
    where: Annotated[str, Query(max_length=100_000)] = "",
    redo: Annotated[str, Query(max_length=20)] = "",
    db: Db = None,
) -> Response:
    """Show the form, filled in from the address."""
    filled = {"table": table, "where": where, "redo": redo, "db": db or ""}
    return _page(request, places, filled | {f"{_COLUMN}{c}": "on" for c in column or ()})


@router.get("/submit/columns")
def columns(
    request: Request,
    catalog: Catalog,
    table: Annotated[str, Query(max_length=500)] = "",
    db: Db = None,
) -> Response:
    """Offer the columns of another table."""
    facts, wrong = _table(catalog, db, table)
    return render(request, "_columns.html", facts=facts, filled={}, wrong_table=wrong)


@router.post("/submit/plan")
def plan(request: Request, places: Places, form: Form) -> Response:
    """Return the plan of the form, or its fault."""
    found: Forecast | None = None
    wrong: Wrong | None = None
    submission: Submission | None = None
    try:
        submission = _asked(places.catalog, form)
        table = admission.opened(submission, places.settings.databases)
        found = forecast(table, submission, places.past, _PLAN_S)
    except GenevaError as error:
        wrong = Wrong.of(error)
    return render(
        request,
        "_plan.html",
        found=found,
        wrong=wrong,
        where=form.get("where", ""),
        redo=form.get("redo", ""),
        command="" if submission is None else _command(submission),
    )


@router.post("/submit", dependencies=[Operator])
def submit(request: Request, places: Places, form: Form) -> Response:
    """Queue the backfill of the form, and go to its run; sent twice, it is still one run."""
    try:
        submission = _asked(places.catalog, form)
        admitted = admission.admit(submission, places.settings.databases)
        key = f"page-{form['key']}" if form.get("key") else None
        run = places.store.submit(admitted.asked, admitted.table_uri, admitted.fills, key=key)
    except RequestError as error:
        return _page(request, places, form, Wrong.of(error))
    return RedirectResponse(f"/runs/{run.id}", 303)


def _page(
    request: Request, places: Places, filled: dict[str, str], wrong: Wrong | None = None
) -> Response:
    catalog, db = places.catalog, filled.get("db") or None
    names, wrong_db = _names(catalog, db)
    if not filled.get("table") and len(names) == 1:
        filled = filled | {"table": names[0]}
    facts, wrong_table = _table(catalog, db, filled.get("table", ""))
    return render(
        request,
        "submit.html",
        status=200 if wrong is None else 422,
        filled=filled,
        facts=facts,
        names=names,
        pools=[p.name for p in places.store.pools() if p.name],
        key=uuid4().hex,
        wrong=wrong or wrong_db,
        wrong_table=wrong_table,
        nowhere=not (db or catalog.db),
        default_pool=DEFAULT_POOL,
        labels=_LABELS,
        window_parts=next(a.parts for a in ARGUMENTS if a.kind is ValueKind.WINDOWS),
    )


def _names(catalog: Catalog, db: str | None) -> tuple[list[str], Wrong | None]:
    if not (db or catalog.db):
        return [], None
    try:
        return catalog.names(db), None
    except GenevaError as error:
        return [], Wrong.of(error)


def _table(catalog: Catalog, db: str | None, name: str) -> tuple[TableFacts | None, Wrong | None]:
    if not name:
        return None, None
    try:
        return catalog.table(db, name), None
    except GenevaError as error:
        return None, Wrong.of(error)


def _asked(catalog: Catalog, form: Mapping[str, str]) -> Submission:
    """Return the request that a form stands for.

    Raises
    ------
    SettingError
        A field does not hold what it should.
    """
    if not form.get("table"):
        raise SettingError("Choose a table")
    chosen = [k.removeprefix(_COLUMN) for k in form if k.startswith(_COLUMN)]
    if not chosen:
        raise SettingError("Choose a column")
    new = checked(
        NewRun,
        db=form.get("db") or None,
        table=form["table"],
        columns=chosen,
        arguments=_arguments(form),
        name=form.get("name", "").strip(),
        pool=form.get("pool", "").strip() or DEFAULT_POOL,
        priority=_number(form, "priority", int) or 0,
    )
    return new.submission(catalog.db)


def _arguments(form: Mapping[str, str]) -> dict[str, Any]:
    redo = form.get("redo", "")
    if redo not in _REDO:
        raise SettingError(f"redo={redo!r} is unknown")
    given = {a.name: _value(form, a) for a in arguments_of(Doors.FORM)}
    return dict(_REDO[redo]) | {k: v for k, v in given.items() if v is not None}


def _value(form: Mapping[str, str], argument: Argument) -> Any:
    """Return the value of a field, or ``None`` if nobody filled it in."""
    if argument.kind is ValueKind.WINDOWS:
        return _windows(form, argument)
    name, text = argument.name, form.get(argument.name, "").strip()
    if not text:
        return None
    match argument.kind:
        case ValueKind.COUNT:
            return _number(form, name, int)
        case ValueKind.NUMBER | ValueKind.SECONDS:
            return _number(form, name, float)
        case ValueKind.SWITCH:
            return True
        case ValueKind.OBJECT:
            return _object(name, text)
        case ValueKind.SQL | ValueKind.CHOICE | ValueKind.TEXT:
            return text
        case ValueKind.TEXTS:
            return "all" if text == "all" else [t.strip() for t in text.split(",") if t.strip()]
        case ValueKind.FRAGMENTS | ValueKind.ROWS | ValueKind.WINDOWS:
            # No form has a field for them.
            raise SettingError(f"{name} cannot be given in a form")
        case _:
            assert_never(argument.kind)


def _windows(form: Mapping[str, str], argument: Argument) -> dict[str, Any] | None:
    """Return the windows of a form, if one of their fields is filled in.

    Raises
    ------
    SettingError
        The column is missing.
    """
    own = {p.name: form.get(f"{argument.option}_{p.name}", "") for p in argument.parts}
    given = {p.name: _value(own, p) for p in argument.parts}
    given = {name: value for name, value in given.items() if value is not None}
    if given and "on" not in given:
        raise SettingError("windows need the column that they are cut along")
    return given or None


def _number(form: Mapping[str, str], name: str, kind: type[int] | type[float]) -> Any:
    text = form.get(name, "").strip()
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise SettingError(f"{name}={text!r} must be {what}") from None


def _object(name: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise SettingError(f"{name} is no JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingError(f'{name} must be a JSON object such as {{"model": "small"}}')
    return value


def _command(submission: Submission) -> str:
    """Return the same backfill as a command for a shell."""
    words = ["geneva", "runs", "submit", submission.table, *submission.columns]
    for argument in ARGUMENTS:
        if argument.name in submission.arguments:
            words += argument.words(submission.arguments[argument.name])
    if submission.pool != DEFAULT_POOL:
        words += ["--pool", submission.pool]
    if submission.priority:
        words += ["--priority", str(submission.priority)]
    if submission.name:
        words += ["--name", submission.name]
    return shlex.join(words)
