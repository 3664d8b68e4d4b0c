"""The arguments of a backfill are declared once, and every door says the same of them."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import geneva
from geneva.cli import options
from geneva.cli.commands import app
from geneva.errors import SettingError
from geneva.flow.spec import BackfillRun
from geneva.model import arguments, windows
from geneva.model.arguments import (
    ARGUMENTS,
    DEFAULTS,
    Argument,
    Doors,
    ValueKind,
    arguments_of,
    chosen,
    refuse_elsewhere,
    with_defaults,
)
from geneva.model.types import Options
from geneva.pages.submit import _arguments as read_form
from geneva.service.schemas import NewRun

VERBS = ["backfill", "backfill_async", "plan_backfill", "check_backfill"]
OF_ITS_OWN = {
    "executor": Literal["ray", "local"] | geneva.appliers.executor.Executor | None,
    "progress": bool | geneva.engine.reporter.Observer | None,
}
TYPES: dict[ValueKind, Any] = {
    ValueKind.COUNT: int,
    ValueKind.NUMBER: float,
    ValueKind.SECONDS: float | timedelta,
    ValueKind.SWITCH: bool,
    ValueKind.SQL: str,
    ValueKind.FRAGMENTS: Sequence[int],
    ValueKind.ROWS: Sequence[tuple[int, int, int]],
    ValueKind.OBJECT: Mapping[str, Any],
    ValueKind.WINDOWS: geneva.Windows | Mapping[str, Any],
}
WINDOWS = Argument(
    "windows",
    ValueKind.WINDOWS,
    None,
    "A range of a column, cut into windows.",
    option="window",
    parts=(
        Argument("on", ValueKind.SQL, None, "The column."),
        Argument("order", ValueKind.CHOICE, None, "Which first.", choices=("forward", "backward")),
        Argument("concurrency", ValueKind.COUNT, None, "Windows that are open at once."),
    ),
)


def typed(argument: Argument) -> Any:
    if argument.name in OF_ITS_OWN:
        return OF_ITS_OWN[argument.name]
    kind = Literal[argument.choices] if argument.choices else TYPES[argument.kind]
    return kind if argument.default is not None else kind | None


@pytest.mark.parametrize("verb", VERBS)
def test_signature_of_the_table_is_the_declaration(verb: str):
    signature = inspect.signature(getattr(geneva.Table, verb))
    named = [p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]
    assert [p.name for p in named] == [a.name for a in ARGUMENTS]
    assert {p.name: p.default for p in named} == DEFAULTS
    for parameter, argument in zip(named, ARGUMENTS, strict=True):
        written = eval(parameter.annotation, vars(geneva.table))
        assert written == typed(argument), argument.name
    assert list(signature.parameters)[:2] == ["self", "columns"]


def test_docstring_of_backfill_describes_every_argument():
    text = inspect.getdoc(geneva.Table.backfill) or ""
    described = re.search(r"Parameters\n-+\n(.*)\n\nReturns", text, re.DOTALL)[1]
    heads = [line for line in described.splitlines() if not line.startswith(" ")]
    names = [name for head in heads for name in head.split(", ")]
    assert names == ["columns", *DEFAULTS]


def test_options_of_the_engine_are_declared_with_the_same_defaults():
    assert {f.name: f.default for f in fields(Options)}.items() <= DEFAULTS.items()
    assert DEFAULTS.keys() - {f.name for f in fields(Options)} == {"params", "executor", "progress"}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(("name", "meant"), [("concurency", "concurrency"), ("Where", "where")])
def test_argument_that_is_unknown_is_answered_with_what_was_meant(
    tmp_path: Path, verb: str, name: str, meant: str
):
    table = geneva.connect(str(tmp_path)).create_table("t", [{"x": 1}])
    with pytest.raises(SettingError, match=rf"'{name}'\. Did you mean '{meant}'\?"):
        getattr(table, verb)("x", **{name: 1})
    with pytest.raises(TypeError, match="columns"):
        getattr(table, verb)()


@pytest.mark.parametrize("words", [["backfill"], ["plan"], ["runs", "submit"], ["runs", "plan"]])
def test_every_argument_of_a_shell_is_an_option_with_its_default_and_help(words: list[str]):
    command = get_command(app)
    for word in words:
        command = command.commands[word]
    doors = Doors.SHELL if words == ["backfill"] else Doors.SHELL | Doors.SERVICE
    by_name = {p.name: p for p in command.params}
    for argument in arguments_of(doors):
        for name, word, told in parts_of(argument):
            option = by_name[name]
            assert f"--{word}" in option.opts
            assert (option.default or None) == (told.default or None), name
            assert option.help == told.help
    assert not {a.name for a in ARGUMENTS if doors not in a.doors} & by_name.keys()


def parts_of(argument: Argument) -> list[tuple[str, str, Argument]]:
    if not argument.parts:
        return [(argument.name, argument.word, argument)]
    return [(f"{argument.name}__{p.name}", f"{argument.word}-{p.word}", p) for p in argument.parts]


def test_parts_of_windows_are_its_arguments():
    declared = next(a for a in ARGUMENTS if a.name == "windows")
    parts = {p.name: p for p in declared.parts}
    assert parts.keys() == {f.name for f in fields(geneva.Windows) if f.name != "_"}
    for name, choices in windows._CHOICES.items():
        assert set(parts[name].choices) == set(choices) - {None}


def test_words_of_a_shell_give_the_value_back():
    values = {
        "where": "x > 'a b'",
        "concurrency": 3,
        "max_failures": 0.5,
        "force": True,
        "on_error": "null",
        "timeout": 1.5,
        "fragments": [3, 5],
        "windows": {"on": "ts", "step": "1d", "order": "backward", "values": ["a", "b"]},
        "params": {"factor": 3, "unit": "km"},
    }
    read: dict[str, Any] = {}
    shell = typer.Typer()

    @shell.command()
    @options.taking_arguments(Doors.SHELL)
    def run(arguments: Mapping[str, Any]) -> None:
        read.update(options.arguments_given(Doors.SHELL, arguments))

    words = [w for a in ARGUMENTS if a.name in values for w in a.words(values[a.name])]
    done = CliRunner().invoke(shell, words)
    assert done.exit_code == 0, done.output
    assert chosen(read) == values


def test_argument_with_parts_is_an_option_for_each_part(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(options, "arguments_of", lambda _: (WINDOWS,))
    read: dict[str, Any] = {}
    shell = typer.Typer()

    @shell.command()
    @options.taking_arguments(Doors.SHELL)
    def run(arguments: Mapping[str, Any]) -> None:
        read.update(options.arguments_given(Doors.SHELL, arguments))

    value = {"on": "ts", "order": "backward", "concurrency": 2}
    words = WINDOWS.words(value)
    assert words[:4] == ["--window-on", "ts", "--window-order", "backward"]
    done = CliRunner().invoke(shell, words)
    assert (done.exit_code, read) == (0, {"windows": value}), done.output
    CliRunner().invoke(shell, [])
    assert read == {"windows": None}
    parts = WINDOWS.schema()["anyOf"][0]["properties"]
    assert parts["concurrency"]["anyOf"][0] == {"type": "integer", "minimum": 1}


def test_schema_of_rest_names_every_argument_of_a_service():
    schema = NewRun.model_json_schema()["properties"]["arguments"]
    assert list(schema["properties"]) == [a.name for a in arguments_of(Doors.SERVICE)]
    assert schema["properties"]["concurrency"] == {
        "type": "integer",
        "minimum": 1,
        "default": 8,
        "description": "Applier processes; what fits starts at once.",
    }
    with pytest.raises(SettingError, match="'progress' is no argument of a job"):
        refuse_elsewhere({"progress": True})


def test_form_has_a_field_for_every_argument_of_a_form():
    page = Path(geneva.__file__).parent / "pages" / "templates" / "submit.html"
    text = page.read_text()
    named = set(re.findall(r'name="(\w+)"|number\("(\w+)"', text))
    shown = {a or b for a, b in named} & DEFAULTS.keys()
    redone = {"force", "retry_failed"}  # one choice, "What to do again"
    windows = {"windows"}  # fields of their own, made from its parts
    assert shown | redone | windows == {a.name for a in arguments_of(Doors.FORM)}
    for argument in arguments_of(Doors.FORM):
        if argument.name == "windows":
            continue
        offered = set(re.findall(rf'option\("{argument.name}", "(\w+)"', text))
        if argument.choices:
            assert offered == set(argument.choices) - {argument.default}


def test_fields_of_windows_in_a_form_are_one_argument():
    form = {
        "window_on": "ts",
        "window_last": "7d",
        "window_step": "1d",
        "window_concurrency": "2",
        "window_order": "backward",
        "window_keys": "a, b",
    }
    assert read_form(form) == {
        "windows": {
            "on": "ts",
            "step": "1d",
            "last": "7d",
            "keys": ["a", "b"],
            "order": "backward",
            "concurrency": 2,
        }
    }
    assert read_form({"window_on": "split", "window_values": "all"})["windows"]["values"] == "all"
    with pytest.raises(SettingError, match="need the column"):
        read_form({"window_step": "1d"})


def test_form_is_read_by_the_kinds_of_its_arguments():
    form = {"concurrency": "4", "timeout": "1.5", "params": '{"a": 1}', "include_new": "yes"}
    assert read_form({"redo": "all", "where": " x > 1 ", **form, "batch_size": ""}) == {
        "force": True,
        "where": "x > 1",
        "concurrency": 4,
        "timeout": 1.5,
        "params": {"a": 1},
        "include_new": True,
    }


def test_flow_takes_every_argument_of_a_flow():
    of_a_flow = {"kind", "table", "columns", "window"}
    names = [n for n in BackfillRun.model_fields if n not in of_a_flow]
    assert set(names) == {a.name for a in arguments_of(Doors.FLOW)}


def test_lengths_of_time_are_numbers_that_can_be_written_down():
    full = with_defaults({"timeout": timedelta(minutes=2)})
    assert full["timeout"] == 120.0
    assert chosen(full) == {"timeout": 120.0}


@pytest.mark.parametrize("argument", ARGUMENTS, ids=lambda a: a.name)
def test_default_is_a_value_that_the_argument_takes(argument: Argument):
    arguments.check_value(argument.name, argument.default)
    json.dumps(argument.schema())
    assert argument.help.endswith((".", "]"))
