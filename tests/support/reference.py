"""Write docs/reference/rest.md, cli.md and arguments.md from the code: ``make reference``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from geneva.cli.commands import app as cli
from geneva.jobs.store.place import open_store
from geneva.model.arguments import ARGUMENTS, Argument, Doors
from geneva.service.app import create_app
from geneva.service.described import (
    ApiField,
    ApiKind,
    ApiModel,
    ApiOperation,
    Content,
    Type,
    described,
)
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
        found = described(create_app(settings, store).openapi())
        store.database.close()
    parts = [_REST]
    for tag in found.tags:
        parts.append(f"## {tag.name.capitalize()}\n\n{tag.text}\n")
        parts += ["\n".join(_operation(o)) for o in tag.operations]
    parts.append("## Models\n")
    parts += ["\n".join(_model(m)) for m in found.models]
    return "\n".join(parts)


def _operation(found: ApiOperation) -> Iterator[str]:
    yield f"### `{found.verb} {found.path}`\n"
    yield f"{found.summary}\n"
    if found.parameters:
        yield "| parameter | in | type | |\n|---|---|---|---|"
        for p in found.parameters:
            yield f"| `{p.name}` | {p.place} | {_type(p.type)} | {_note(p)} |"
        yield ""
    if found.body is not None:
        yield f"Body: {_content(found.body)}\n"
    good = [(status, content) for status, content in found.answers.items() if status < 400]
    yield "; ".join(f"{status}: {_content(content)}" for status, content in good) + "\n"


def _content(found: Content) -> str:
    return ", ".join(f"{_type(kind)} ({media})" for media, kind in found.types) or "empty"


def _model(found: ApiModel) -> Iterator[str]:
    yield f"### {found.name}\n"
    if found.text:
        yield f"{found.text}\n"
    if found.values:
        yield ", ".join(f"`{v}`" for v in found.values) + "\n"
    if found.fields:
        yield "| field | type | |\n|---|---|---|"
        for f in found.fields:
            yield f"| `{f.name}` | {_type(f.type)} | {_note(f)} |"
        yield ""


def _type(words: Type) -> str:
    forms = {ApiKind.MODEL: lambda t: f"[{t}](#{t.lower()})", ApiKind.VALUE: lambda t: f"`{t}`"}
    return "".join(forms.get(w.kind, str)(w.text) for w in words)


def _note(found: ApiField) -> str:
    needed = "required" if found.required and found.place else ""
    default = f"default `{found.default}`" if found.default else ""
    texts = (needed, default, " ".join(found.text.split()).replace("|", "\\|"))
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
