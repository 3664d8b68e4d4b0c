"""The options of the commands; a backfill's options are made from its declared arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from geneva.column.auto import duration_s as interval_s
from geneva.errors import SettingError
from geneva.model.arguments import Argument, Doors, ValueKind, arguments_of

TableName = Annotated[str, typer.Argument(metavar="TABLE", help="Name of the table.")]
Columns = Annotated[list[str], typer.Argument(metavar="COLUMN...", help="Computed columns.")]
Db = Annotated[
    str,
    typer.Option(
        "--db", metavar="URI", envvar="GENEVA_DB", help="A directory, s3://, gs:// or az://."
    ),
]
StorageOptions = Annotated[
    list[str] | None,
    typer.Option("--storage-option", metavar="KEY=VALUE", help="As lancedb takes them; repeat."),
]
RayOptions = Annotated[
    list[str] | None,
    typer.Option("--ray", metavar="KEY=VALUE", help="For ray.init, values as JSON; repeat."),
]
JobsUrl = Annotated[
    str | None,
    typer.Option(
        "--jobs",
        metavar="URL",
        envvar="GENEVA_JOBS",
        help="Record the job in sqlite:///FILE or postgresql://..., or have the service at "
        "http://... carry it out.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks.")]
ExecutorName = Annotated[
    Literal["ray", "local"], typer.Option(help="Ray actors, or threads of this process.")
]

_TYPES: Mapping[ValueKind, Any] = {
    ValueKind.COUNT: int,
    ValueKind.NUMBER: float,
    ValueKind.SECONDS: float,
    ValueKind.SWITCH: bool,
    ValueKind.SQL: str,
    ValueKind.TEXT: str,
    ValueKind.TEXTS: list[str],
    ValueKind.FRAGMENTS: list[int],
    ValueKind.OBJECT: list[str],
}
_METAVARS = {
    ValueKind.SQL: "SQL",
    ValueKind.FRAGMENTS: "ID",
    ValueKind.OBJECT: "KEY=VALUE",
}


def taking_arguments(doors: Doors) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command an option for each argument of a backfill that the doors take.

    They stand where the command has its own parameter ``arguments``, which takes them as one
    mapping: `arguments_given` reads it.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        options = [o for a in arguments_of(doors) for o in _options(a)]
        signature = inspect.signature(command, eval_str=True)
        parameters = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            for own in signature.parameters.values()
            for parameter in (options if own.name == "arguments" else [own])
        ]

        @wraps(command)
        def call(**given: Any) -> None:
            arguments = {o.name: given.pop(o.name) for o in options}
            command(**given, arguments=arguments)

        call.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in parameters}
        return call

    return decorate


def _options(argument: Argument, whole: str = "", word: str = "") -> Iterator[inspect.Parameter]:
    """Yield the option of an argument, or one for each of its parts."""
    name, word = f"{whole}{argument.name}", f"{word}{argument.word}"
    for part in argument.parts:
        yield from _options(part, f"{name}__", f"{word}-")
    if argument.parts:
        return
    plain = Literal[argument.choices] if argument.choices else _TYPES[argument.kind]
    either = argument.kind is ValueKind.SWITCH and argument.default is None
    option = typer.Option(
        f"--{word}/--no-{word}" if either else f"--{word}",
        metavar=_METAVARS.get(argument.kind),
        help=argument.help,
    )
    kind = plain if argument.default is not None else plain | None
    yield inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=argument.default,
        annotation=Annotated[kind, option],
    )


def arguments_given(doors: Doors, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a backfill from the options of a command."""
    return {a.name: _value(a, given) for a in arguments_of(doors)}


def _value(argument: Argument, given: Mapping[str, Any], whole: str = "", word: str = "--") -> Any:
    name, word = f"{whole}{argument.name}", f"{word}{argument.word}"
    if argument.parts:
        held = {p.name: _value(p, given, f"{name}__", f"{word}-") for p in argument.parts}
        return {k: v for k, v in held.items() if v is not None} or None
    value = given[name]
    if argument.kind is ValueKind.OBJECT:
        return values(value, word) or None
    if argument.kind is ValueKind.TEXTS:
        return "all" if value == ["all"] else value or None
    if argument.kind is ValueKind.NUMBER and value is not None and value >= 1:
        return int(value)  # a count, not a fraction
    return value


def pairs(given: Sequence[str] | None, option: str) -> dict[str, str]:
    """Read repeated ``KEY=VALUE``."""
    pairs = dict(text.partition("=")[::2] for text in given or ())
    for text in given or ():
        if "=" not in text or text.startswith("="):
            shown = "" if option == "--storage-option" else f" {text!r}"  # it may be a secret
            raise SettingError(f"{option}{shown} is not KEY=VALUE")
    return pairs


def values(given: Sequence[str] | None, option: str) -> dict[str, Any]:
    """Read values as JSON, or else as text, so that quotes are rarely needed."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except ValueError:
            return text

    return {k: value(v) for k, v in pairs(given, option).items()}


def duration_s(text: str) -> float:
    """Read ``7d``, ``12h``, ``30m``, ``90s`` or plain seconds."""
    with suppress(SettingError):
        return interval_s(text)
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < float("inf"):
            return seconds
    raise SettingError(f"--older-than {text!r} is no duration; examples: 0, 90s, 30m, 12h, 7d")


def absolute(uri: str) -> str:
    """Return a path or URI that means the same in another folder."""
    return uri if "://" in uri else str(Path(uri).absolute())
