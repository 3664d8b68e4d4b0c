"""Write docs/reference/rest.md, cli.md and arguments.md from the code: ``make reference``."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from geneva.cli.commands import app as cli
from geneva.jobs.store.opening import open_store
from geneva.model.arguments import ARGUMENTS, Argument, Doors
from geneva.service.app import create_app
from geneva.service.limits import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_URL_BYTES
from geneva.service.service_settings import Settings

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "reference"
_MADE = "<!-- Made from the code by `make reference`; do not edit. -->"
_PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "TERMINAL_WIDTH": "100"}
_REST = f"""# REST

{_MADE}

`geneva serve` answers under `http://127.0.0.1:8265`; `/openapi.json` is the schema that this
page is made from. What it is for is in [the guide](../guides/jobs.md).

- **Tokens**: `Authorization: Bearer TOKEN`. `GET`, and `POST` to a path that ends with `/plan`,
  need the viewer's token; all else needs the operator's. Without tokens the service answers on
  loopback only.
- **Errors** are `application/problem+json`: `type` is the class of `geneva.errors`, `detail`
  says what is wrong and what to do.
- **Lists** hold at most `limit` items; `next` is the `cursor` of the next page, or null.
- **Idempotency**: a submission that is sent again with the same `Idempotency-Key` is the same
  run, for as long as the run is recorded; with another body it is refused with 409.
- **Streams** are server-sent events. After a broken connection, send the last `id` as
  `Last-Event-ID`: what came after it follows.
- **Limits**: a body of {MAX_BODY_BYTES:,} bytes (413), headers of {MAX_HEADER_BYTES:,} (431), a
  URL of {MAX_URL_BYTES:,} (414), and `--rate-limit` requests a second from one client, with
  bursts of twice as many (429 with `Retry-After`). `--max-streams` streams may be open at
  once (503), a quarter of them of one client (429); both with `Retry-After`.
"""
_CLI = f"""# Command line

{_MADE}

| exit code | |
|---|---|
| 0 | done |
| 1 | the job ended before it was complete |
| 2 | the request is wrong: fix it |
| 3 | a passing fault, or nobody answers: try again |
| 4 | somebody must mend the cluster or the files |
| 130 | interrupted, or the run was cancelled |

With `--json` a command prints one JSON object on stdout (with `--follow`, one a line), also for an
error: `error` is the class of `geneva.errors`, `message` what was wrong, `exit_code` as above.
"""
_ARGUMENTS = f"""# Arguments of a backfill

{_MADE}

`geneva.Table.backfill`, `backfill_async` and `plan_backfill` take all of them. A service takes them
as `arguments`, in the REST interface and in `auto_backfill`, except those that are marked
"not by a service". The options are those of `geneva backfill`, `geneva plan` and
`geneva runs submit`.

| argument | takes | default | option | |
|---|---|---|---|---|
"""


# ------------------------------------------------------------------------------------------- REST


def rest() -> str:
    """Return the page of the REST interface."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(f"sqlite:///{folder}/jobs.db", Path(folder))
        store = open_store(settings.url)
        schema = create_app(settings, store).openapi()
        store.database.close()
    operations = [
        (operation["tags"], "\n".join(_operation(verb, path, operation)))
        for path, verbs in schema["paths"].items()
        for verb, operation in verbs.items()
    ]
    parts = [_REST]
    for tag in schema["tags"]:
        parts.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}\n")
        parts += [text for tags, text in operations if tag["name"] in tags]
    parts.append("## Models\n")
    parts += ["\n".join(_model(*m)) for m in sorted(schema["components"]["schemas"].items())]
    return "\n".join(parts)


def _operation(verb: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"### `{verb.upper()} {path}`\n"
    yield operation["description"].partition("\n")[0] + "\n"
    if parameters := operation.get("parameters"):
        yield "| parameter | in | type | |\n|---|---|---|---|"
        for p in parameters:
            notes = _notes(p["schema"], p.get("description"), p.get("required", False), needed=True)
            yield f"| `{p['name']}` | {p['in']} | {_type(p['schema'])} | {notes} |"
        yield ""
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody'])}\n"
    answers = [(s, a) for s, a in operation["responses"].items() if int(s) < 400]
    yield "; ".join(f"{status}: {_content(answer)}" for status, answer in answers) + "\n"


def _content(answer: Mapping[str, Any]) -> str:
    kinds = answer.get("content", {}).items()
    return ", ".join(f"{_type(c.get('schema', {}))} ({media})" for media, c in kinds) or "empty"


def _model(name: str, model: Mapping[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    text, _, attributes = model.get("description", "").partition("\n\nAttributes\n----------\n")
    if text:
        yield f"{text.strip()}\n"
    if "enum" in model:
        yield ", ".join(f"`{v}`" for v in model["enum"]) + "\n"
    if fields := model.get("properties"):
        texts = _texts(attributes)
        yield "| field | type | |\n|---|---|---|"
        for field, kind in fields.items():
            text = texts.get(field, kind.get("description"))
            notes = _notes(kind, text, field in model.get("required", ()), needed=False)
            yield f"| `{field}` | {_type(kind)} | {notes} |"
        yield ""


def _texts(attributes: str) -> dict[str, str]:
    """Return the text of each field from that section of a docstring."""
    parts = re.findall(r"^(\w.*)\n((?:(?: +.*)?(?:\n|$))+)", attributes, re.MULTILINE)
    return {name: text for names, text in parts for name in names.split(", ")}


def _type(kind: Mapping[str, Any]) -> str:
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in kind or "enum" in kind:
        choices = [_type(k) for k in kind.get("anyOf", ())]
        return " or ".join([*choices, *(f"`{v}`" for v in kind.get("enum", ()))])
    if kind.get("type") == "array":
        return f"list of {_type(kind.get('items', {}))}"
    return "moment" if kind.get("format") == "date-time" else str(kind.get("type", "any"))


def _notes(kind: Mapping[str, Any], text: str | None, required: bool, *, needed: bool) -> str:
    default = "" if required else kind.get("default")
    texts = (
        "required" if required and needed else "",
        "" if default in (None, "", {}, []) else f"default `{default}`",
        " ".join((text or kind.get("description", "")).split()).replace("|", "\\|"),
    )
    return "; ".join(t for t in texts if t)


# -------------------------------------------------------------------------------------------- CLI


def shell() -> str:
    """Return the page of the command line."""
    return "\n".join([_CLI, *_commands(get_command(cli), [])])


def _commands(group: Any, words: list[str]) -> Iterator[str]:
    for word, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from _commands(command, [*words, word])
        else:
            called = [*words, word]
            help_text = CliRunner().invoke(
                cli, [*called, "--help"], prog_name="geneva", env=_PLAIN, max_content_width=96
            )
            name = f"geneva {' '.join(called)}"
            yield f"## `{name}`\n\n```text\n{help_text.stdout.strip()}\n```\n"


# -------------------------------------------------------------------------------------- arguments


def arguments() -> str:
    """Return the page of the arguments of a backfill."""
    return _ARGUMENTS + "\n".join(map(_argument, ARGUMENTS))


def _argument(argument: Argument) -> str:
    choices = " or ".join(f"`{c}`" for c in argument.choices)
    kind = choices or argument.kind.value
    if argument.unit and argument.unit not in kind:
        kind += f" ({argument.unit})"
    option = f"`--{argument.word}`" if Doors.SHELL in argument.doors else "not in a shell"
    limits = "" if Doors.SERVICE in argument.doors else " Not by a service."
    cells = (f"`{argument.name}`", kind, f"`{argument.default}`", option, argument.help + limits)
    return f"| {' | '.join(cells)} |"


def pages() -> dict[str, str]:
    """Return all pages by the name of their file."""
    made = {"rest.md": rest(), "cli.md": shell(), "arguments.md": arguments()}
    return {name: text.rstrip() + "\n" for name, text in made.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
