"""The commands: each opens a table, calls the method of the same name, and answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from geneva.cli import service_commands
from geneva.cli.answers import (
    EXIT_CODES,
    answering,
    code_of,
    column_facts,
    columns_text,
    coverage_text,
    result_facts,
    result_text,
)
from geneva.cli.options import (
    AsJson,
    Columns,
    Db,
    Debug,
    ExecutorName,
    JobsUrl,
    RayOptions,
    StorageOptions,
    TableName,
    arguments_given,
    duration_s,
    pairs,
    taking_arguments,
    values,
)
from geneva.column.binding import as_called, binding_of
from geneva.connection import connect_existing
from geneva.engine.clean import clean as clean_table
from geneva.engine.plan.report import plan_facts
from geneva.model.arguments import Doors
from geneva.table import Table


class _Commands(TyperGroup):
    """The commands; an interrupt before or after a command's answer is one line too.

    Typer would end with the exit code of an interrupt and without a word.
    """

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the arguments."""
        try:
            return super().make_context(*args, **options)
        except KeyboardInterrupt:
            raise typer.Abort from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None


app = typer.Typer(
    name="geneva",
    cls=_Commands,
    help="Backfill computed columns of LanceDB tables, resumably and at scale.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its boxes cut the long options short
)


def _open(
    db: str,
    table: str,
    storage: Sequence[str] | None,
    ray: Sequence[str] | None = None,
    jobs: str | None = None,
) -> Table:
    options = pairs(storage, "--storage-option") or None
    known = {"storage_options": options, "ray": values(ray, "--ray"), "jobs": jobs}
    return connect_existing(db, **known).open_table(table)


@app.command()
@taking_arguments(Doors.SHELL)
def backfill(
    table: TableName,
    columns: Columns,
    db: Db,
    arguments: Mapping[str, Any],
    storage_option: StorageOptions = None,
    ray: RayOptions = None,
    jobs: JobsUrl = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Compute the missing and stale rows of computed columns.

    Every batch is checkpointed: after a crash, Ctrl-C or an error the same command continues
    where it stopped.
    """
    with answering(as_json, debug) as answer:
        opened = _open(db, table, storage_option, ray, jobs)
        result = opened.backfill(columns, **arguments_given(Doors.SHELL, arguments))
        answer(result_text(result), result_facts(result))
        raise typer.Exit(code_of(result.state))


@app.command()
@taking_arguments(Doors.SHELL | Doors.SERVICE)
def plan(
    table: TableName,
    columns: Columns,
    db: Db,
    arguments: Mapping[str, Any],
    storage_option: StorageOptions = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Plan a `backfill` with the same options, per fragment; nothing runs."""
    with answering(as_json, debug) as answer:
        opened = _open(db, table, storage_option)
        options = arguments_given(Doors.SHELL | Doors.SERVICE, arguments)
        planned = opened.plan_backfill(columns, **options)
        answer(str(planned), plan_facts(planned))


@app.command()
def coverage(
    table: TableName,
    db: Db,
    columns: Annotated[
        list[str] | None, typer.Argument(metavar="[COLUMN...]", help="Default: all computed.")
    ] = None,
    fragments: Annotated[
        bool, typer.Option("--fragments", help="A line per fragment as well.")
    ] = False,
    storage_option: StorageOptions = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Say how many rows of computed columns are computed, stale and missing."""
    with answering(as_json, debug) as answer:
        opened = _open(db, table, storage_option)
        counted = [opened.coverage(c) for c in columns or opened.computed_columns()]
        text = "\n".join(coverage_text(c, fragments) for c in counted) or "no computed columns"
        facts = [
            {
                "column": c.column,
                "version": c.version,
                "totals": c.totals,
                "fragments": c.table.to_pylist(),
            }
            for c in counted
        ]
        answer(text, {"columns": facts})


@app.command()
def columns(
    table: TableName,
    db: Db,
    storage_option: StorageOptions = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the computed columns and their bindings; no UDF is loaded."""
    with answering(as_json, debug) as answer:
        schema = as_called(_open(db, table, storage_option).storage.open())
        bound = [(f.name, str(f.type), binding_of(f)) for f in schema]
        facts = [column_facts(n, t, b) for n, t, b in bound if b is not None]
        answer(columns_text(facts), {"columns": facts})


@app.command()
def clean(
    table: TableName,
    db: Db,
    older_than: Annotated[
        str,
        typer.Option(
            metavar="DURATION",
            help="Only what was not written to for so long (90s, 30m, 12h, 7d). "
            "0 takes all but what belongs to columns that a backfill is filling, and UDFs and torn "
            "small files of the last hour.",
        ),
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count.")] = False,
    storage_option: StorageOptions = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Remove the files of abandoned work and dropped columns; no value is touched.

    That is: checkpoints, files that no version names, and records and UDFs of columns that no
    version has.
    """
    with answering(as_json, debug) as answer:
        opened = _open(db, table, storage_option)
        removed = clean_table(opened.storage, duration_s(older_than), dry_run=dry_run)
        answer(str(removed), asdict(removed) | {"total_bytes": removed.total_bytes})


@app.command()
def demo(
    folder: Annotated[
        str, typer.Option("--dir", metavar="PATH", help="Where the table goes.")
    ] = "demo-data",
    rows: Annotated[int, typer.Option(min=200, help="Python source files to take.")] = 3000,
    executor: ExecutorName = "ray",
    debug: Debug = False,
) -> None:
    """Backfill a table of this machine's Python sources, kill a job, resume it, and search."""
    with answering(False, debug):
        from geneva.cli.demo import run

        run(folder, rows=rows, executor=executor)


@app.command()
def version(as_json: AsJson = False) -> None:
    """Print the versions of geneva and of the packages that its tables depend on."""
    names = {"geneva": "geneva-backfill", "lancedb": "lancedb", "pylance": "pylance", "ray": "ray"}
    with answering(as_json, False) as answer:
        versions = {k: version_of(v) for k, v in names.items()}
        answer(" ".join(f"{k} {v}" for k, v in versions.items()), versions)


service_commands.install(app)
