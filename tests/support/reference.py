"""Write docs/reference/rest.md and cli.md from the code: ``make reference``."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner

from geneva.cli.commands import app as cli
from geneva.service.app import create_app
from geneva.service.limits import MAX_BODY_BYTES, MAX_HEADER_BYTES, MAX_URL_BYTES
from geneva.service.settings import Settings
from geneva.store.place import open_store

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
  bursts of twice as many (429 with `Retry-After`).
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


# ------------------------------------------------------------------------------------------- REST


def rest() -> str:
    """Return the page of the REST interface."""
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(f"sqlite:///{folder}/jobs.db", Path(folder))
        store = open_store(settings.url)
        schema = create_app(settings, store).openapi()
        store.database.close()
    operations = [
        (verb, path, operation)
        for path, verbs in schema["paths"].items()
        for verb, operation in verbs.items()
    ]
    parts = [_REST]
    for tag in schema["tags"]:
        chosen = [o for o in operations if tag["name"] in o[2]["tags"]]
        if chosen:
            parts.append(f"## {tag['name'].capitalize()}\n\n{tag['description']}\n")
            parts += ["\n".join(_operation(*o)) for o in chosen]
    parts.append("## Models\n")
    models = sorted(schema["components"]["schemas"].items())
    parts += ["\n".join(_model(name, model)) for name, model in models]
    return "\n".join(parts)


def _operation(verb: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### `{verb.upper()} {path}`\n"
    yield f"{operation['summary']}.\n"
    rows = [
        (p["name"], p["in"], p["schema"], p.get("required", False), p.get("description", ""))
        for p in operation.get("parameters", ())
    ]
    if rows:
        yield "| parameter | in | type | |\n|---|---|---|---|"
        for name, where, kind, required, text in rows:
            note = "required" if required else _default(kind)
            yield f"| `{name}` | {where} | {_type(kind)} | {_cell(note, text)} |"
        yield ""
    if "requestBody" in operation:
        yield f"Body: {_content(operation['requestBody'])}\n"
    good = [(s, r) for s, r in operation["responses"].items() if int(s) < 400]
    yield "; ".join(f"{s}: {_content(r)}" for s, r in good) + "\n"


def _content(found: dict[str, Any]) -> str:
    kinds = found.get("content", {})
    return (
        ", ".join(f"{_type(c.get('schema', {}))} ({kind})" for kind, c in kinds.items()) or "empty"
    )


def _model(name: str, model: dict[str, Any]) -> Iterator[str]:
    yield f"### {name}\n"
    if "description" in model:
        yield f"{model['description'].strip()}\n"
    if "enum" in model:
        yield ", ".join(f"`{v}`" for v in model["enum"]) + "\n"
    if "properties" in model:
        yield "| field | type | |\n|---|---|---|"
        required = model.get("required", ())
        for field, kind in model["properties"].items():
            note = "" if field in required else _default(kind)
            yield f"| `{field}` | {_type(kind)} | {_cell(note, kind.get('description', ''))} |"
        yield ""


def _type(kind: dict[str, Any]) -> str:
    if "$ref" in kind:
        name = kind["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in kind:
        return " or ".join(_type(k) for k in kind["anyOf"])
    if "enum" in kind:
        return " or ".join(f"`{v}`" for v in kind["enum"])
    if kind.get("type") == "array":
        return f"list of {_type(kind.get('items', {}))}"
    if kind.get("format") == "date-time":
        return "moment"
    return str(kind.get("type", "any"))


def _default(kind: dict[str, Any]) -> str:
    value = kind.get("default")
    return "" if value is None or value in ("", {}, []) else f"default `{value}`"


def _cell(*texts: str) -> str:
    return "; ".join(" ".join(t.split()).replace("|", "\\|") for t in texts if t)


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


def pages() -> dict[str, str]:
    """Return all pages by the name of their file."""
    return {"rest.md": rest().rstrip() + "\n", "cli.md": shell().rstrip() + "\n"}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)
        print(FOLDER / name)
