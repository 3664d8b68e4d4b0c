"""The OpenAPI schema as people read it: operations by tag, and models, their types as words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple


class ApiKind(StrEnum):
    """The kind of a word in a type."""

    TEXT = "text"
    MODEL = "model"  # its text is the name of one
    VALUE = "value"


class Word(NamedTuple):
    """A piece of a type, such as ``list of``."""

    text: str
    kind: ApiKind = ApiKind.TEXT


Type = tuple[Word, ...]
"""The words of a type, to be joined without spaces."""


@dataclass(frozen=True, slots=True)
class ApiField:
    """A parameter, or a field of a model; ``place`` is where a parameter goes."""

    name: str
    place: str
    type: Type
    required: bool
    default: str
    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """A body: one type for each media type; none if it is empty."""

    text: str
    types: tuple[tuple[str, Type], ...]


@dataclass(frozen=True, slots=True)
class ApiOperation:
    """One verb of one path.

    Attributes
    ----------
    example
        A body with what is required, or ``None`` where there is no body.
    answers
        By status.
    """

    verb: str
    path: str
    summary: str
    text: str
    parameters: tuple[ApiField, ...]
    body: Content | None
    example: Any
    answers: Mapping[int, Content]


@dataclass(frozen=True, slots=True)
class ApiModel:
    """The model of a body."""

    name: str
    text: str
    values: tuple[str, ...]
    fields: tuple[ApiField, ...]


@dataclass(frozen=True, slots=True)
class Tag:
    """Operations that belong together."""

    name: str
    text: str
    operations: tuple[ApiOperation, ...]


@dataclass(frozen=True, slots=True)
class Described:
    """A whole schema."""

    tags: tuple[Tag, ...]
    models: tuple[ApiModel, ...]


def described(schema: Mapping[str, Any]) -> Described:
    """Return the description that a schema of `geneva.service.openapi` holds."""
    operations = [
        (o["tags"], _operation(verb, path, o, schema))
        for path, verbs in schema["paths"].items()
        for verb, o in verbs.items()
    ]
    tags = [
        Tag(t["name"], t["description"], tuple(o for names, o in operations if t["name"] in names))
        for t in schema["tags"]
    ]
    models = sorted(schema["components"]["schemas"].items())
    return Described(tuple(t for t in tags if t.operations), tuple(_model(*m) for m in models))


def _operation(
    verb: str, path: str, operation: Mapping[str, Any], schema: Mapping[str, Any]
) -> ApiOperation:
    body = operation.get("requestBody")
    summary = f"{operation['summary']}."
    return ApiOperation(
        verb.upper(),
        path,
        summary,
        "" if operation["description"].startswith(summary) else operation["description"],
        tuple(_parameter(p) for p in operation.get("parameters", ())),
        None if body is None else _content(body),
        None if body is None else _example_body(body, schema),
        {int(status): _content(found) for status, found in operation["responses"].items()},
    )


def _parameter(found: Mapping[str, Any]) -> ApiField:
    required = found.get("required", False)
    return _field(found["name"], found["schema"], required, found["in"], found.get("description"))


def _field(
    name: str, kind: Mapping[str, Any], required: bool, place: str = "", text: str | None = None
) -> ApiField:
    default = kind.get("default")
    said = "" if required or default is None or default in ("", {}, []) else str(default)
    text = kind.get("description", "") if text is None else text
    return ApiField(name, place, tuple(_type(kind)), required, said, text)


def _content(found: Mapping[str, Any]) -> Content:
    kinds = found.get("content", {}).items()
    types = tuple((media, tuple(_type(c.get("schema", {})))) for media, c in kinds)
    return Content(found.get("description", ""), types)


def _model(name: str, model: Mapping[str, Any]) -> ApiModel:
    required = model.get("required", ())
    fields = [_field(n, kind, n in required) for n, kind in model.get("properties", {}).items()]
    text = model.get("description", "").strip()
    return ApiModel(name, text, tuple(map(str, model.get("enum", ()))), tuple(fields))


def _type(kind: Mapping[str, Any]) -> Iterator[Word]:
    if "$ref" in kind:
        yield Word(kind["$ref"].rpartition("/")[2], ApiKind.MODEL)
    elif "anyOf" in kind or "enum" in kind:
        choices: list[Type] = [tuple(_type(k)) for k in kind.get("anyOf", ())]
        choices += [(Word(v, ApiKind.VALUE),) for v in kind.get("enum", ())]
        for i, choice in enumerate(choices):
            yield from (Word(" or "), *choice) if i else choice
    elif kind.get("type") == "array":
        yield from (Word("list of "), *_type(kind.get("items", {})))
    elif kind.get("format") == "date-time":
        yield Word("moment")
    else:
        yield Word(str(kind.get("type", "any")))


def _example_body(body: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    return next(_example(c.get("schema", {}), schema) for c in body["content"].values())


def _example(kind: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """Return a value with its required fields, or with its first one if none is."""
    if "$ref" in kind:
        kind = schema["components"]["schemas"][kind["$ref"].rpartition("/")[2]]
    if "anyOf" in kind:
        return _example(kind["anyOf"][0], schema)
    match kind.get("type"):
        case "object":
            fields = kind.get("properties", {})
            names = kind.get("required") or [*fields][:1]
            return {n: _example(fields[n], schema) for n in names}
        case "array":
            return [_example(kind.get("items", {}), schema)]
        case "integer" | "number":
            return 1
        case "boolean":
            return True
        case _:
            return "..."
