"""`geneva runs ...`: the verbs of the REST interface, for a shell."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geneva.cli.answers import EXIT_CODES, answering, code_of
from geneva.cli.options import AsJson, Debug, absolute, arguments_given, taking_arguments
from geneva.engine.control import VERBS
from geneva.errors import SettingError
from geneva.jobs.page import Sort, states_named
from geneva.model.arguments import Doors, chosen

if TYPE_CHECKING:
    from geneva.jobs.records import (
        EventRecord,
        FailureGroup,
        FailureRecord,
        JobRecord,
        LogPart,
        RunRecord,
        StageRecord,
        Submission,
        WindowRecord,
    )
    from geneva.jobs.store.client import Client

app = typer.Typer(
    help="Backfills that a service carries out.", no_args_is_help=True, epilog=EXIT_CODES
)

_Url = Annotated[
    str,
    typer.Option(
        "--url",
        envvar="GENEVA_URL",
        help="The service; its token is read from GENEVA_TOKEN, or, where it runs for this account "
        "of this host, from a file that it wrote.",
    ),
]
_DEFAULT_URL = "http://127.0.0.1:8265"
_RunId = Annotated[str, typer.Argument(metavar="RUN", help="Id of the run.")]
_Table = Annotated[str, typer.Argument(metavar="TABLE", help="Name of the table.")]
_Columns = Annotated[list[str], typer.Argument(metavar="COLUMN...", help="Computed columns.")]
_ServedDb = Annotated[
    str | None,
    typer.Option("--db", metavar="URI", envvar="GENEVA_DB", help="As the service sees it."),
]
_OPTIONS = Doors.SHELL | Doors.SERVICE
_FOUND = 20
_LOOK_S = 0.5


def _client(url: str) -> Client:
    from geneva.jobs.store.client import Client

    return Client(url)


@app.command()
@taking_arguments(_OPTIONS)
def submit(
    table: _Table,
    columns: _Columns,
    arguments: Mapping[str, Any],
    db: _ServedDb = None,
    name: Annotated[str, typer.Option(help="To find it again.")] = "",
    pool: Annotated[str, typer.Option(help="Whose slots it takes.")] = "default",
    priority: Annotated[int, typer.Option(help="Higher starts earlier.")] = 0,
    watch: Annotated[bool, typer.Option("--watch", help="Follow it to its end.")] = False,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Queue a backfill; it goes on whether or not this command does."""
    with answering(as_json, debug) as answer:
        submission = _submission(table, columns, db, arguments, name, pool, priority)
        client = _client(url)
        run = client.submit(submission)
        if watch:
            run = _follow(client, run.id)
        answer(_line(run), _facts(run))
        raise typer.Exit(code_of(run.state))


@app.command()
@taking_arguments(_OPTIONS)
def plan(
    table: _Table,
    columns: _Columns,
    arguments: Mapping[str, Any],
    db: _ServedDb = None,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Plan a backfill as the table stands; nothing runs."""
    with answering(as_json, debug) as answer:
        planned = _client(url).plan(_submission(table, columns, db, arguments))
        to_do = [f for f in planned["fragments"] if f["this_call"]]
        answer(f"{planned['rows_compute']:,} rows in {len(to_do):,} fragments", planned)


def _submission(
    table: str,
    columns: Sequence[str],
    db: str | None,
    arguments: Mapping[str, Any],
    name: str = "",
    pool: str = "default",
    priority: int = 0,
) -> Submission:
    from geneva.jobs.records import Submission

    return Submission(
        db="" if db is None else absolute(db),
        table=table,
        columns=tuple(columns),
        arguments=chosen(arguments_given(_OPTIONS, arguments)),
        name=name,
        pool=pool,
        priority=priority,
    )


@app.command()
def ls(
    state: Annotated[
        list[str] | None, typer.Option(help="Only runs in this state; repeat for several.")
    ] = None,
    table: Annotated[str | None, typer.Option(help="Only runs of this table.")] = None,
    name: Annotated[str | None, typer.Option(help="Only runs of this name.")] = None,
    sort: Annotated[
        Sort, typer.Option(help="What comes first: the least, or with a minus the greatest.")
    ] = "-created",
    limit: Annotated[int, typer.Option(help="At most so many.")] = _FOUND,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List runs, the newest first."""
    with answering(as_json, debug) as answer:
        from geneva.jobs.page import Wish

        states = states_named(state or ())
        wish = Wish(states=states, table=table, name=name, sort=sort, limit=limit)
        runs = _client(url).runs(wish).items
        text = "\n".join(_line(run) for run in runs) or "no runs"
        answer(text, {"runs": [_facts(run) for run in runs]})


@app.command()
def show(
    run_id: _RunId, url: _Url = _DEFAULT_URL, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Show a run with its jobs, and why they are as they are."""
    with answering(as_json, debug) as answer:
        client = _client(url)
        run = client.run(run_id)
        stages = {j.id: client.stages(j.id) for j in run.jobs}
        lines = [line for j in run.jobs for line in (_job(j), *map(_stages, stages[j.id]))]
        facts = {job: [asdict(s) for s in timed] for job, timed in stages.items()}
        answer("\n".join([_line(run), f"  {run.cause}", *lines]), _facts(run) | {"stages": facts})


def _job(job: JobRecord) -> str:
    about = "about " if job.total_estimated else ""
    total = "?" if job.rows_total is None else f"{about}{job.rows_total:,}"
    text = (
        f"  job {job.id} {job.state.value}: {job.rows_computed:,} of {total} rows, "
        f"{job.fragments_committed:,} of {job.fragments_total:,} fragments visible"
    )
    return text + (f"; {job.reason}" if job.reason else "")


def _stages(stage: StageRecord) -> str:
    """Return the stage times of a column."""
    spent = ", ".join(f"{name} {s:,.1f} s" for name, s in stage.seconds.items())
    return f"    {stage.column}: {spent} (summed over threads)"


@app.command()
def watch(
    run_id: _RunId, url: _Url = _DEFAULT_URL, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Follow a run to its end; leaving does not disturb it."""
    with answering(as_json, debug) as answer:
        run = _follow(_client(url), run_id)
        answer(_line(run), _facts(run))
        raise typer.Exit(code_of(run.state))


def _follow(client: Client, run_id: str) -> RunRecord:
    from geneva.jobs.records import EventRecord

    for seen in client.watch(run_id):
        if isinstance(seen, EventRecord):
            print(_event(seen), file=sys.stderr)
    return client.run(run_id)


def _event(event: EventRecord) -> str:
    what = event.data.get("to", event.kind)
    return f"{event.at:%H:%M:%S} {what} {event.message}".rstrip()


def _steering(verb: str) -> Any:
    def command(
        run_id: _RunId, url: _Url = _DEFAULT_URL, as_json: AsJson = False, debug: Debug = False
    ) -> None:
        with answering(as_json, debug) as answer:
            run = _client(url).want(run_id, VERBS[verb])
            answer(_line(run), _facts(run))

    return command


for _verb, _help in {
    "pause": "Stop at the next batch and free the appliers; checkpoints are kept.",
    "resume": "Queue what was paused; nothing is computed twice.",
    "cancel": "Stop for good; finished fragments are committed, checkpoints are kept.",
}.items():
    app.command(_verb, help=_help)(_steering(_verb))


@app.command()
def retry(
    run_id: _RunId,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="KEY", help="Only the rows of one group of `failures`, in a run of its own."
        ),
    ] = None,
    windows: Annotated[
        bool,
        typer.Option("--windows", help="Only the windows that failed, in a run of their own."),
    ] = False,
    window: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY", help="Only this window, in a run of its own; repeat for several."
        ),
    ] = None,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Queue the failed part of a run again."""
    with answering(as_json, debug) as answer:
        from geneva.jobs.records import FailureWish

        client = _client(url)
        if group is not None and (windows or window):
            raise SettingError("--group and --windows exclude each other")
        if group is not None:
            run = client.retry_failures(FailureWish(run_id=run_id), group)
        elif windows or window:
            run = client.retry_windows(client.run(run_id).jobs[-1].id, window or ())
        else:
            run = client.retry(run_id)
        answer(_line(run), _facts(run))


@app.command()
def windows(
    run_id: _RunId,
    state: Annotated[
        str | None, typer.Option(help="Only windows in this state, such as FAILED.")
    ] = None,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the windows of a run, in the order in which they open, with their states."""
    with answering(as_json, debug) as answer:
        from geneva.jobs.store.tables import windows_of
        from geneva.model.result import WindowState

        if state is not None and state.upper() not in WindowState.__members__:
            known = ", ".join(WindowState)
            raise SettingError(f"no window is ever {state!r}; the states are {known}")
        client = _client(url)
        wanted = None if state is None else WindowState(state.upper())
        jobs = client.run(run_id).jobs
        found = [(j.id, w) for j in jobs for w in windows_of(client, j.id, wanted)]
        head = (
            f"{'window':28} {'state':9} {'rows':>12} {'planned':>12} {'failed':>8} {'seconds':>8}"
        )
        lines = [_window(w) for _, w in found]
        facts = {"windows": [{"job_id": job} | asdict(w) for job, w in found]}
        answer("\n".join([head, *lines]) if lines else "no windows", facts)


def _window(window: WindowRecord) -> str:
    key = window.key if window.windows == 1 else f"{window.key} and {window.windows - 1:,} more"
    counts = f"{window.rows_computed:>12,} {window.rows_planned:>12,} {window.rows_failed:>8,}"
    text = f"{key:28} {window.state.value:9} {counts} {window.seconds:>8.1f}"
    return f"{text}  {window.reason}" if window.reason else text


@app.command()
def change(
    run_id: _RunId,
    priority: Annotated[int | None, typer.Option(help="Higher starts earlier.")] = None,
    max_active: Annotated[int | None, typer.Option(help="Jobs of the run at once.")] = None,
    no_cap: Annotated[bool, typer.Option("--no-cap", help="Lift the cap of the run.")] = False,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Change the priority or the cap of a run, also while it runs."""
    with answering(as_json, debug) as answer:
        from geneva.jobs.records import Keep

        if no_cap and max_active is not None:
            raise SettingError("--no-cap and --max-active exclude each other")
        cap = max_active if no_cap or max_active is not None else Keep.KEEP
        run = _client(url).change(run_id, priority=priority, max_active=cap)
        answer(_line(run), _facts(run))


@app.command()
def delete(
    run_id: _RunId, url: _Url = _DEFAULT_URL, as_json: AsJson = False, debug: Debug = False
) -> None:
    """Remove the records of a run that has ended; values are never touched."""
    with answering(as_json, debug) as answer:
        _client(url).delete(run_id)
        answer(f"run {run_id} was deleted", {"deleted": run_id})


@app.command()
def logs(
    run_id: _RunId,
    applier: Annotated[
        int | None, typer.Option(help="What UDFs printed on this applier; default: the driver.")
    ] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on to the run's end.")] = False,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Print the end of the log of a run's latest job."""
    with answering(as_json, debug) as answer:
        client = _client(url)
        name = "driver" if applier is None else f"applier-{applier}"
        job = client.run(run_id).jobs[-1]
        part = client.log(job.id, name)
        if not follow:
            facts = {"job": job.id, "logs": [asdict(r) for r in client.logs(job.id)]}
            answer(part.text.removesuffix("\n"), facts | asdict(part))
            return
        for more in _parts(client, job.id, part):
            if as_json:
                answer("", {"job": job.id} | asdict(more))
            else:
                print(more.text, end="", flush=True)


def _parts(client: Client, job_id: str, part: LogPart) -> Iterator[LogPart]:
    """Yield a part of a log and its later parts, until the job has ended and is silent."""
    ended = False
    while True:
        if part.text:
            yield part
        at, was_over = part.end, ended
        ended = client.job(job_id).state.ended
        part = client.log(job_id, part.name, at)
        if part.end == at:
            if was_over:
                return
            time.sleep(_LOOK_S)


@app.command()
def failures(
    run_id: _RunId,
    rows: Annotated[
        bool, typer.Option("--rows", help="List the rows of each job, as they failed.")
    ] = False,
    limit: Annotated[int, typer.Option(help="With --rows: at most so many of each job.")] = _FOUND,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the rows that UDFs failed on and nobody computed since, by exception and message."""
    with answering(as_json, debug) as answer:
        from geneva.jobs.records import FailureWish

        client = _client(url)
        if rows:
            jobs = client.run(run_id).jobs
            failed = [f for j in jobs for f in client.failures(j.id, limit).items]
            text = "\n".join(f"{f.column} {_row(f, f'{f.error}: ')}" for f in failed)
            answer(text or "no failures", {"failures": [asdict(f) for f in failed]})
            return
        groups = client.failure_groups(FailureWish(run_id=run_id))
        lines = [line for group in groups.items for line in _group(run_id, group)]
        if not groups.complete:
            lines.append("and more: this took as many rows as one look takes")
        answer("\n".join(lines) or "no failures", asdict(groups))


def _group(run_id: str, group: FailureGroup) -> Iterator[str]:
    """Return a group with its samples, and how to retry it."""
    rows = "1 row" if group.rows == 1 else f"{group.rows:,} rows"
    retrying = f", {group.retrying:,} of them in a retry" if group.retrying else ""
    yield f"{group.error}: {group.shape}"
    yield f"  {rows} of {group.table}.{group.column}{retrying}"
    for sample in group.samples:
        yield f"  {_row(sample.failure)}"
    if group.retrying < group.rows:
        yield f"  again: geneva runs retry {run_id} --group {group.key}"


def _row(failure: FailureRecord, error: str = "") -> str:
    place = f"fragment {failure.fragment_id} row {failure.row}"
    return f"{place} ({failure.input}): {error}{failure.message}"


@app.command()
def auto(url: _Url = _DEFAULT_URL, as_json: AsJson = False, debug: Debug = False) -> None:
    """List the columns that are kept filled (auto_backfill), and the latest run of each."""
    with answering(as_json, debug) as answer:
        columns = _client(url).auto()
        lines = [
            f"{w.table}.{','.join(w.columns)}  {w.schedule or 'on change'}  "
            f"{w.run_id or 'no run yet'}  {w.reason}".rstrip()
            for w in columns
        ]
        answer("\n".join(lines) or "no columns", {"columns": [asdict(w) for w in columns]})


@app.command()
def pools(
    name: Annotated[str | None, typer.Argument(help="Pool; '' stands for all jobs.")] = None,
    slots: Annotated[
        int | None, typer.Option(help="Set how many of its jobs may be active at once.")
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Remove it, if no live job is in it.")
    ] = False,
    url: _Url = _DEFAULT_URL,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """List the pools, set the slots of one, or remove one."""
    with answering(as_json, debug) as answer:
        client = _client(url)
        if delete and (name is None or slots is not None):
            raise SettingError("--delete needs the name of a pool, and no --slots")
        if delete and name is not None:
            client.delete_pool(name)
        elif name is not None:
            client.set_pool(name, slots)
        listed = client.pools()
        lines = [
            f"{p.name or '(all)':16} {p.active} active, {p.queued} queued, "
            f"{'no cap' if p.slots is None else f'{p.slots} slots'}"
            for p in listed
        ]
        answer("\n".join(lines), {"pools": [asdict(p) for p in listed]})


def _line(run: RunRecord) -> str:
    what = f"{run.table}.{','.join(run.columns)}"
    when = f"{run.created_at:%Y-%m-%d %H:%M:%S}"
    return f"{run.id}  {run.state.value:10} {when}  {what}  {run.reason or run.name}".rstrip()


def _facts(run: RunRecord) -> dict[str, Any]:
    return asdict(run)
