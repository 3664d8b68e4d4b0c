"""Joins: past jobs as lists of values. Pure: over records that somebody else has read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from geneva.errors import FlowError, QueryError
from geneva.flow.fields import JobField
from geneva.flow.match import Record, artifacts_of, matches, ordered
from geneva.flow.query import Tree, parse_query, parse_sort
from geneva.flow.spec import Io, Join, JoinParam, Param
from geneva.flow.templates import render

MOST_JOBS = 5_000
SECTIONS = ("inputs", "outputs", "artifacts", "metrics", "globals")
GLOBALS = (
    "uuid", "name", "run_uuid", "project_name", "created_at", "artifacts_path", "outputs_path",
)  # fmt: skip
_DEFAULT_SORT = "-created_at"


@dataclass(frozen=True, slots=True)
class JobSearch:
    """A join that is ready to be asked: its templates are filled in and its parts are read."""

    text: str
    tree: Tree
    sort: tuple[tuple[JobField, bool], ...]
    limit: int | None
    offset: int


@dataclass(frozen=True, slots=True)
class Joined:
    """A resolved join: a value for each of its params, and the jobs that it took, in order."""

    lists: Mapping[str, object]
    ids: tuple[str, ...]


def check_joins(
    joins: Sequence[Join], inputs: Iterable[Io], params: Mapping[str, Param] | Iterable[str]
) -> None:
    """Refuse joins with params that are given twice, that no input expects, or that no job has.

    Raises
    ------
    FlowError
        It names the param.
    """
    by_name = {io.name: io for io in inputs}
    seen = set(params)
    for number, join in enumerate(joins):
        for name, param in join.params.items():
            path = f"joins[{number}].params.{name}"
            if name in seen:
                raise FlowError(f"the param {name!r} is given twice", path)
            seen.add(name)
            _check_value(param.value, path)
            if param.context_only:
                continue
            io = by_name.get(name)
            if io is None:
                known = ", ".join(by_name) or "none"
                raise FlowError(
                    f"no input expects the param {name!r} (contextOnly keeps it out of them); the "
                    f"inputs are {known}",
                    path,
                )
            if not io.is_list and io.type != "artifacts":
                raise FlowError(f"a join gives lists: the input {name!r} needs isList: true", path)


def _check_value(value: object, path: str) -> None:
    """Refuse a field that a job does not have."""
    if isinstance(value, Mapping):
        if not value or set(value) - {"files", "dirs"}:
            raise FlowError(f"a mapping names files and dirs, not {', '.join(value)}", path)
        return
    if not isinstance(value, str):
        raise FlowError(
            f"a join takes a section of a job, such as outputs.loss, not {value!r}", path
        )
    section, *names = value.split(".")
    if section not in SECTIONS:
        raise FlowError(f"{value!r}: jobs have no {section}; they have {', '.join(SECTIONS)}", path)
    if len(names) > 1 or names == [""]:
        raise FlowError(f"{value!r} is not of the form section or section.name", path)
    if section == "globals" and names and names[0] not in GLOBALS:
        raise FlowError(f"{value!r}: the globals are {', '.join(GLOBALS)}", path)


def search_of(join: Join, names: Mapping[str, object]) -> JobSearch:
    """Fill in a join's templates and read its query, order and bounds.

    Raises
    ------
    FlowError
        A template or a bound is wrong.
    QueryError
        The query or the order does not parse.
    """
    query, sort = str(render(join.query, names)), render(join.sort, names) or _DEFAULT_SORT
    limit = _bound(render(join.limit, names), "limit", 1)
    if limit is not None and limit > MOST_JOBS:
        raise FlowError(f"limit {limit}: a join takes at most {MOST_JOBS} jobs")
    offset = _bound(render(join.offset, names), "offset", 0) or 0
    return JobSearch(query, parse_query(query), parse_sort(str(sort)), limit, offset)


def _bound(value: object, name: str, least: int) -> int | None:
    if value is None:
        return None
    try:
        number = int(value) if isinstance(value, int | str) and value is not True else None
    except ValueError:
        number = None
    if number is None or isinstance(value, bool):
        raise FlowError(f"{name} is a whole number, not {value!r}")
    if number < least:
        raise FlowError(f"{name} must be at least {least}, not {number}")
    return number


def taken(search: JobSearch, records: Iterable[Record]) -> list[Record]:
    """Return the jobs that a search takes, in its order.

    Raises
    ------
    FlowError
        Without a limit it takes more than `MOST_JOBS`.
    """
    found = ordered((r for r in records if matches(search.tree, r)), search.sort)
    found = found[search.offset :]
    if search.limit is not None:
        return found[: search.limit]
    if len(found) > MOST_JOBS:
        raise FlowError(
            f"the query {search.text!r} takes {len(found)} jobs; a join takes at most {MOST_JOBS}: "
            "set a limit"
        )
    return found


def joined(join: Join, jobs: Sequence[Record]) -> Joined:
    """Return the values that a join makes of its jobs."""
    lists = {name: _list(param, jobs) for name, param in join.params.items()}
    return Joined(lists, tuple(str(job["id"]) for job in jobs))


def resolve(join: Join, names: Mapping[str, object], records: Iterable[Record]) -> Joined:
    """Resolve a join over plain records.

    Raises
    ------
    FlowError
        A template or a bound is wrong, the query does not parse, or too many jobs match.
    """
    try:
        return joined(join, taken(search_of(join, names), records))
    except QueryError as error:
        raise FlowError(f"the query {join.query!r}: {error}") from error


def _list(param: JoinParam, jobs: Sequence[Record]) -> object:
    value = param.value
    if isinstance(value, Mapping):
        made = {}
        for kind in ("files", "dirs"):
            listed = value.get(kind) or ()
            listed = [listed] if isinstance(listed, str) else listed
            made[kind] = [f"{job['id']}/{path}" for job in jobs for path in listed]
        return made
    section, _, name = str(value).partition(".")
    return [_of(job, section, name) for job in jobs]


def _of(job: Record, section: str, name: str) -> object:
    """Return a section of a job, or one value of it; None where the job has none."""
    if section == "globals":
        held: object = {key: _global(job, key) for key in GLOBALS}
    elif section == "artifacts":
        held = {"base": str(job["id"])} | artifacts_of(job)
    else:
        held = job.get(section) or {}
        other = {"outputs": "metrics", "metrics": "outputs"}.get(section)
        if name and other and isinstance(held, Mapping) and name not in held:
            held = job.get(other) or {}
    if not name:
        return held
    return held.get(name) if isinstance(held, Mapping) else None


def _global(job: Record, name: str) -> object:
    match name:
        case "uuid":
            return job["id"]
        case "run_uuid":
            return job.get("run_id", job["id"])
        case "project_name":
            return job.get("project.name")
        case "artifacts_path":
            return job.get("artifacts_path", str(job["id"]))
        case "outputs_path":
            return job.get("outputs_path", f"{job['id']}/outputs")
        case _:
            return job.get(name)
