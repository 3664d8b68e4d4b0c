"""The commands of a service: `geneva serve`, `geneva scheduler` and `geneva db upgrade`."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geneva.cli import flow_commands, run_commands
from geneva.cli.answers import answering
from geneva.cli.options import AsJson, Debug, absolute

if TYPE_CHECKING:
    from geneva.service.service_settings import Settings

_Url = Annotated[
    str | None,
    typer.Option(
        "--jobs",
        metavar="URL",
        envvar="GENEVA_JOBS",
        help="Database of jobs, sqlite:///FILE or postgresql://... [default: a file in --state]",
        show_default=False,
    ),
]
_State = Annotated[
    str | None,
    typer.Option(
        metavar="PATH",
        envvar="GENEVA_STATE",
        help="Folder for logs and the database of jobs. [default: _geneva in --db, else a "
        "folder of the user]",
        show_default=False,
    ),
]
_ServedDb = Annotated[
    str | None,
    typer.Option("--db", metavar="URI", envvar="GENEVA_DB", help="Meant where a request has none."),
]
_AllowDb = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PREFIX",
        help="Also open databases that are, or lie in, this folder or URI; repeat. [default: only "
        "--db]",
        show_default=False,
    ),
]
_KeepDays = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Delete the records and logs of runs that ended so many days ago; values stay. "
        "[default: never]",
        show_default=False,
    ),
]
_Watch = Annotated[
    float | None,
    typer.Option(
        min=0,
        metavar="SECONDS",
        help="How often the tables of --db are looked at for columns with auto_backfill; 0 for "
        "never. [default: 1, on an object store 10]",
        show_default=False,
    ),
]

_Grace = Annotated[
    float, typer.Option(help="Seconds that a driver has to stop before it is killed.")
]

_MaxDrivers = Annotated[
    int, typer.Option(min=1, help="Drivers, each a process, that run at once on this host.")
]


def install(app: typer.Typer) -> None:
    """Add the commands of the service and of its jobs."""
    app.command()(serve)
    app.command()(scheduler)
    database = typer.Typer(help="The database of jobs.", no_args_is_help=True)
    database.command("upgrade")(upgrade)
    app.add_typer(database, name="db")
    app.add_typer(run_commands.app, name="runs")
    app.add_typer(flow_commands.app, name="flow")


def serve(
    db: _ServedDb = None,
    allow_db: _AllowDb = None,
    jobs: _Url = None,
    state: _State = None,
    host: Annotated[
        str, typer.Option(help="Others than loopback need GENEVA_TOKEN.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 8265,
    schedule: Annotated[
        bool, typer.Option("--schedule/--no-schedule", help="Also start and watch drivers.")
    ] = True,
    keep_days: _KeepDays = None,
    grace: _Grace = 15.0,
    max_drivers: _MaxDrivers = 8,
    watch: _Watch = None,
    rate_limit: Annotated[
        float, typer.Option(min=0, help="Requests a second of one client; 0 for no limit.")
    ] = 500.0,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ADDRESS",
            help="A proxy whose X-Forwarded-For is believed; repeat. [default: none]",
            show_default=False,
        ),
    ] = None,
    max_streams: Annotated[
        int, typer.Option(min=1, help="Event streams at once; one client may have a quarter.")
    ] = 200,
    debug: Debug = False,
) -> None:
    """Serve jobs over HTTP and schedule them; they outlive this command."""
    with answering(False, debug):
        _log()
        from geneva.pages.site import install as pages
        from geneva.service.serve import serve as run

        settings = _settings(db, jobs, state, keep_days, grace, watch, host, port)
        settings = replace(settings, max_drivers=max_drivers, allow_db=_places(allow_db))
        settings = replace(settings, requests_per_s=rate_limit, max_streams=max_streams)
        settings = replace(settings, proxies=tuple(proxy or ()))
        run(settings, schedule=schedule, pages=pages)


def scheduler(
    db: _ServedDb = None,
    allow_db: _AllowDb = None,
    jobs: _Url = None,
    state: _State = None,
    keep_days: _KeepDays = None,
    grace: _Grace = 15.0,
    max_drivers: _MaxDrivers = 8,
    watch: _Watch = None,
    debug: Debug = False,
) -> None:
    """Schedule jobs without serving HTTP; several may run."""
    with answering(False, debug):
        _log()
        from geneva.service.scheduler import Scheduler

        settings = _settings(db, jobs, state, keep_days, grace, watch)
        allowed = _places(allow_db)
        Scheduler(replace(settings, max_drivers=max_drivers, allow_db=allowed)).run()


def upgrade(
    jobs: _Url = None,
    db: _ServedDb = None,
    state: _State = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Bring the database of jobs to the version that this geneva needs, and print it."""
    with answering(as_json, debug) as answer:
        from geneva.jobs.store.database import Database
        from geneva.jobs.store.opening import upgrade as bring

        version = bring(Database(_settings(db, jobs, state).url))
        answer(version, {"version": version})


def _settings(
    db: str | None,
    jobs: str | None,
    state: str | None,
    keep_days: float | None = None,
    grace: float = 15.0,
    watch: float | None = None,
    host: str = "127.0.0.1",
    port: int = 8265,
) -> Settings:
    from geneva.jobs.store.database import with_password
    from geneva.service.handover import conceal
    from geneva.service.service_settings import Settings, default_state, default_watch_s, token_of

    folder = Path(state) if state else default_state(db)
    folder = folder.absolute()
    url = jobs or f"sqlite:///{folder / 'jobs.db'}"
    settings = Settings(
        url=with_password(url, os.environ.get("PGPASSWORD")),
        state=folder,
        db=None if db is None else absolute(db),
        host=host,
        port=port,
        operator_token=token_of("GENEVA_TOKEN"),
        viewer_token=token_of("GENEVA_VIEWER_TOKEN"),
        grace_s=grace,
        watch_s=default_watch_s(db) if watch is None else watch,
        keep_s=None if keep_days is None else keep_days * 86400,
    )
    conceal(settings.secrets)
    return settings


def _places(given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the databases that may be opened, checked."""
    from geneva.service.opened_tables import place_of

    places = tuple(map(absolute, given or ()))
    for place in places:
        place_of(place)
    return places


def _log() -> None:
    form = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    logging.basicConfig(level=logging.INFO, format=form)
    logging.getLogger("alembic").setLevel(logging.WARNING)
